"""``init=kfac``: the factors that raise the loss least, by a moment on either side of every matrix."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lillama.algebra.moments import DiagonalMoment, Moment
from lillama.algebra.spectrum import Factors
from lillama.algebra.two_sided import (
    Metric,
    TwoSidedSpectrum,
    predicted_rise,
    shrunk,
    spectrum_of_metrics,
    stacked,
    two_sided_spectrum,
)
from lillama.config import FactorForm, InitConfig, KfacConfig, Place
from lillama.data.calibration import Calibration
from lillama.init.curvature import Curvature, LossMean, curvatures
from lillama.init.notes import StartNotes
from lillama.init.reports import report_idle, report_weak
from lillama.init.spectra import FactorCache, Method, kept_columns, spectra
from lillama.model.surgery import matrix_at_work


def kfac_start(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    config: InitConfig,
    *,
    data: Calibration | None,
    cache: FactorCache | None,
    progress: bool,
    notes: StartNotes,
) -> Iterator[tuple[str, Factors]]:
    """Yield the factors of every matrix from the moments of its inputs and of the gradients at its outputs."""
    assert isinstance(config, KfacConfig) and data is not None
    weak: dict[str, int] = {}
    notes.predicted_loss_rise = 0.0
    for name, spectrum in kfac_spectra(teacher, ranks, data, config, cache=cache, progress=progress):
        notes.predicted_loss_rise += predicted_rise(reached_values(spectrum), ranks[name])
        weak[name] = spectrum.undetermined(ranks[name])
        report_idle("kfac", name, spectrum.weak)
        yield name, spectrum.cut(ranks[name])
    report_weak("kfac", weak)


def kfac_spectra(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    data: Calibration,
    config: KfacConfig,
    *,
    cache: FactorCache | None,
    progress: bool,
    form: FactorForm = FactorForm.plain,
) -> Iterator[tuple[str, TwoSidedSpectrum]]:
    """Yield the spectrum of every named matrix, of which its rank can be cut; those in the cache come first.

    :param form: of the factors that may be cut from what is kept.
    """
    columns, seen = kept_columns(teacher, ranks, form), data.head(config.tokens)
    work = _Work(teacher, seen, config, columns, None if cache is None else cache.cache.root, progress)
    key = ["kfac", seen.hash, *_settings(config)] if cache is not None else []
    return spectra(Method(key, work.compute, work.restore), ranks, cache)


@dataclass(frozen=True, slots=True)
class LossSpectra:
    """Squared singular values of two-sided factorisations, by matrix, and the dense model's loss on the same tokens."""

    values: Mapping[str, Sequence[float]]
    loss: float
    tokens: int


def loss_spectra(
    teacher: nn.Module,
    names: Sequence[str],
    data: Calibration,
    config: KfacConfig,
    *,
    form: FactorForm = FactorForm.plain,
    cache: FactorCache | None = None,
    progress: bool = False,
) -> LossSpectra:
    """Take the squared singular values of every named matrix, descending: half of a tail is a rise of the loss.

    Fused experts share one rank, so theirs are summed over the experts.
    """
    ranks = dict.fromkeys(names, 1)
    made = kfac_spectra(teacher, ranks, data, config, cache=cache, progress=progress, form=form)
    values, loss = dict[str, list[float]](), 0.0
    for name, spectrum in tqdm(made, total=len(names), desc="spectra", unit="matrix", disable=not progress):
        own = reached_values(spectrum)
        values[name] = (own if own.dim() == 1 else own.sum(0)).tolist()
        loss = float(spectrum.loss)
    return LossSpectra({name: values[name] for name in names}, loss, data.head(config.tokens).tokens)


def reached_values(spectrum: TwoSidedSpectrum) -> Tensor:
    """The values of a spectrum, of fused experts without those that no token reached: they are on another scale."""
    if spectrum.values.dim() == 1:
        return spectrum.values
    reached = ~spectrum.weak.all(1)
    return spectrum.values[reached] if bool(reached.any()) else spectrum.values


def _settings(config: KfacConfig) -> list[object]:
    """Return the settings that the spectra depend on; the tokens are told by their hash."""
    numbers = [config.input_damping, config.output_damping, config.table_damping, config.shrinkage, config.seed]
    return [config.output.name, config.labels, *numbers]


class _LatestMetric:
    """Keep the metric of the moment that was asked for last: linears that share an input follow each other.

    The moment is held with it, so that no other one is taken for it.
    """

    def __init__(self, damping: float) -> None:
        self._damping = damping
        self._latest: tuple[Moment, Metric] | None = None

    def of(self, moment: Moment) -> Metric:
        """Make the metric of a moment, or give the one at hand."""
        if self._latest is None or self._latest[0] is not moment:
            self._latest = (moment, Metric(moment.value, self._damping))
        return self._latest[1]


@dataclass(frozen=True, slots=True)
class _Work:
    """The teacher, the tokens and the settings that spectra are made from, and how many columns are kept."""

    teacher: nn.Module
    data: Calibration
    config: KfacConfig
    columns: Mapping[str, int]
    root: Path | None
    progress: bool

    def compute(self, names: Sequence[str]) -> Iterator[tuple[str, TwoSidedSpectrum]]:
        """Yield the spectra of the named matrices, a block's as soon as its moments are taken."""
        mean, metrics = LossMean(), _LatestMetric(self.config.input_damping)
        with TemporaryDirectory(dir=self._folder(), prefix="kfac-") as folder:
            scratch = Path(folder) if self.config.place is Place.disk else None
            taken = curvatures(
                self.teacher, names, self.data, self.config, mean=mean, scratch=scratch, progress=self.progress
            )
            for name, curvature in taken:
                spectrum = self._spectrum(name, curvature, metrics)
                yield name, replace(spectrum, loss=torch.tensor(mean.value))

    def restore(self, name: str, tensors: Mapping[str, Tensor]) -> TwoSidedSpectrum:
        """Rebuild a spectrum from what the cache holds."""
        weight = matrix_at_work(self.teacher, name)
        return TwoSidedSpectrum(weight=weight, **{part: tensor.to(weight.device) for part, tensor in tensors.items()})

    def _folder(self) -> Path | None:
        """Hidden states go where factorisations go: a system's own temporary folder is often in memory."""
        if self.root is None or self.config.place is not Place.disk:
            return None
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root

    def _spectrum(self, name: str, curvature: Curvature, metrics: _LatestMetric) -> TwoSidedSpectrum:
        weight, columns, config = matrix_at_work(self.teacher, name), self.columns[name], self.config
        damping = {"input_damping": config.input_damping, "output_damping": config.output_damping}
        if isinstance(curvature.inputs, Tensor):
            rows, inner = _table_metric(curvature, config.shrinkage)
            both = {"input_damping": config.output_damping, "output_damping": config.table_damping}
            return two_sided_spectrum(weight=weight, inputs=inner, outputs=rows, columns=columns, **both)
        if isinstance(curvature.inputs, list):  # each expert by its own tokens; one without any follows its weights
            assert isinstance(curvature.outputs, list)
            moments = [
                (c.value, shrunk(g.value, config.shrinkage))
                for c, g in zip(curvature.inputs, curvature.outputs, strict=True)
            ]
            experts = [
                two_sided_spectrum(weight=own, inputs=c, outputs=g, columns=columns, **damping)
                for own, (c, g) in zip(weight, moments, strict=True)
            ]
            return stacked(experts, weight)
        assert not isinstance(curvature.outputs, list)
        teacher: Any = self.teacher
        is_head = teacher.get_submodule(name) is teacher.get_output_embeddings()
        share = config.table_damping if is_head else config.output_damping
        outputs = Metric(shrunk(curvature.outputs.value, config.shrinkage), share)
        return spectrum_of_metrics(weight, metrics.of(curvature.inputs), outputs, columns)


def _table_metric(curvature: Curvature, shrinkage: float) -> tuple[Tensor, Tensor]:
    """The metrics of an embedding's table [V, d]: a weight a row [V], and the moment of its vectors' gradients [d, d].

    The rows are weighed by how often their tokens occur. With a tied head, whose rows are weighed by the predictions
    and whose columns by its inputs, the sum of the two Kronecker products is approximated by one of the same
    trace (Martens and Grosse 2015, Section 6.3, has the same device for damping).
    """
    assert isinstance(curvature.inputs, Tensor) and not isinstance(curvature.outputs, list)
    rows, inner = curvature.inputs.double() / curvature.inputs.sum().clamp_min(1), curvature.outputs.value
    inner = shrunk(inner, shrinkage)
    if curvature.head is None:
        return rows, inner
    head = curvature.head
    assert isinstance(head.inputs, Moment) and isinstance(head.outputs, DiagonalMoment)
    logits, hidden = head.outputs.value, head.inputs.value
    hidden = hidden.diagonal() if inner.dim() == 1 else hidden
    table_share, head_share = rows.sum(), logits.sum()
    both_rows = rows * _trace(inner) + logits * _trace(hidden)
    both_inner = inner * table_share + hidden * head_share
    return both_rows, both_inner / both_inner.new_tensor(max(float(_trace(both_inner)), 1e-300))


def _trace(moment: Tensor) -> Tensor:
    return moment.sum() if moment.dim() == 1 else moment.trace()
