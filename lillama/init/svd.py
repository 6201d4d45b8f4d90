"""``init=svd``: the weights alone (Eq. 2)."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from lillama.algebra.factorize import svd_spectrum
from lillama.algebra.spectrum import Factors, SvdSpectrum
from lillama.config import InitConfig, Split, SvdConfig
from lillama.data.calibration import Calibration
from lillama.init.notes import StartNotes
from lillama.init.spectra import FactorCache, Method, kept_columns, spectra
from lillama.model.surgery import matrix_at_work


def svd_start(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    config: InitConfig,
    *,
    data: Calibration | None,
    cache: FactorCache | None,
    progress: bool,
    notes: StartNotes,
) -> Iterator[tuple[str, Factors]]:
    """Yield the start of every matrix by its truncated SVD."""
    assert isinstance(config, SvdConfig)
    columns = kept_columns(teacher, ranks)

    def compute(names: Sequence[str]) -> Iterator[tuple[str, SvdSpectrum]]:
        for name in names:
            yield name, svd_spectrum(weight=matrix_at_work(teacher, name), columns=columns[name])

    def restore(name: str, tensors: Mapping[str, Tensor]) -> SvdSpectrum:
        device = matrix_at_work(teacher, name).device
        return SvdSpectrum(**{part: tensor.to(device) for part, tensor in tensors.items()})

    for name, spectrum in spectra(Method(["svd"], compute, restore), ranks, cache):
        yield name, spectrum.cut(ranks[name], symmetric=config.split is Split.symmetric)
