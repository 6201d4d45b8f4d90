"""``init=feature``: the best low-rank map for the outputs on calibration tokens (Eq. 3)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lillama.algebra.factorize import embedding_spectrum, feature_spectrum, moment_root, stacked_spectra
from lillama.algebra.moments import Moment
from lillama.algebra.spectrum import Factors, FeatureSpectrum
from lillama.config import FactorForm, FeatureConfig, InitConfig
from lillama.data.calibration import Calibration
from lillama.init.moments import InputMoment, input_moments, moment_groups
from lillama.init.notes import StartNotes
from lillama.init.reports import report_idle, report_weak
from lillama.init.spectra import FactorCache, Method, kept_columns, spectra
from lillama.model.surgery import matrix_at_work


def feature_start(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    config: InitConfig,
    *,
    data: Calibration | None,
    cache: FactorCache | None,
    progress: bool,
    notes: StartNotes,
) -> Iterator[tuple[str, Factors]]:
    """Yield the start of every matrix from the second moment of its inputs in the teacher."""
    assert isinstance(config, FeatureConfig) and data is not None
    seen = data.head(config.tokens)
    weak: dict[str, int] = {}
    for name, spectrum in feature_spectra(teacher, ranks, seen, floor=config.floor, cache=cache, progress=progress):
        weak[name] = spectrum.undetermined(ranks[name])
        report_idle("feature", name, spectrum.weak)
        yield name, spectrum.cut(ranks[name])
    report_weak("feature", weak)


def feature_spectra(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    data: Calibration,
    *,
    floor: float,
    cache: FactorCache | None,
    progress: bool,
    form: FactorForm = FactorForm.plain,
) -> Iterator[tuple[str, FeatureSpectrum]]:
    """Return the spectrum of every named matrix, of which its rank can be cut; those in the cache come first.

    :param data: the calibration tokens, all of which count. :param floor: of their moments (:func:`ridge`).
    :param form: of the factors that may be cut from what is kept.
    """
    columns = kept_columns(teacher, ranks, form)
    work = _Work(teacher, data, floor, columns, progress)
    key = ["feature", floor, data.hash] if cache is not None else []
    return spectra(Method(key, work.compute, work.restore), ranks, cache)


@dataclass(frozen=True, slots=True)
class _Work:
    """Computes spectra from the teacher, calibration tokens, the floor of their moments, how many columns."""

    teacher: nn.Module
    data: Calibration
    floor: float
    columns: Mapping[str, int]
    progress: bool

    def compute(self, names: Sequence[str]) -> Iterator[tuple[str, FeatureSpectrum]]:
        """Yield the spectra of the named matrices, from the moments of their inputs."""
        for group in moment_groups(self.teacher, names):
            moments = input_moments(self.teacher, group, self.data, progress=self.progress)
            roots: dict[int, Tensor] = {}
            for name in group:
                yield name, self._spectrum(name, moments[name], roots)

    def restore(self, name: str, tensors: Mapping[str, Tensor]) -> FeatureSpectrum:
        """Return a spectrum as the cache holds it."""
        weight = matrix_at_work(self.teacher, name)
        parts = {part: tensor.to(weight.device) for part, tensor in tensors.items()}
        return FeatureSpectrum(weight=weight, basis=parts["basis"], values=parts["values"], weak=parts.get("weak"))

    def _spectrum(self, name: str, moment: InputMoment, roots: dict[int, Tensor]) -> FeatureSpectrum:
        weight, columns = matrix_at_work(self.teacher, name), self.columns[name]
        if isinstance(moment, Tensor):
            return embedding_spectrum(weight=weight, counts=moment, floor=self.floor, columns=columns)
        if isinstance(moment, list):  # each expert from its own tokens; one that saw none follows its weights (Eq. 2)
            pairs = zip(weight, moment, strict=True)
            experts = [
                feature_spectrum(weight=own, moment=c.value, floor=self.floor, columns=columns) for own, c in pairs
            ]
            return stacked_spectra(experts, weight)
        root = _shared_root(roots, moment, self.floor) if weight.shape[0] > weight.shape[1] else None
        return feature_spectrum(weight=weight, moment=moment.value, floor=self.floor, root=root, columns=columns)


def _shared_root(roots: dict[int, Tensor], moment: Moment, floor: float) -> Tensor:
    """Return the root of a moment, once: linears that share an input share it."""
    if id(moment) not in roots:
        roots[id(moment)] = moment_root(moment.value, floor)
    return roots[id(moment)]
