"""``init=svd``: the weights alone (Eq. 2)."""

from collections.abc import Iterator, Mapping

from torch import nn

from lillama.algebra.factorize import Factors, svd_factors
from lillama.config import InitConfig, Split, SvdConfig
from lillama.data.calibration import Calibration
from lillama.model.surgery import matrix


def svd_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: Calibration | None, config: InitConfig, progress: bool
) -> Iterator[tuple[str, Factors]]:
    """The start of every matrix by its truncated SVD."""
    assert isinstance(config, SvdConfig)
    for name, rank in ranks.items():
        yield name, svd_factors(weight=matrix(teacher, name), rank=rank, symmetric=config.split is Split.symmetric)
