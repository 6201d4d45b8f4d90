"""``init=svd``: the weights alone (Eq. 2)."""

from collections.abc import Iterator, Mapping

from torch import nn

from lillama.algebra.factorize import Factors, svd_factors
from lillama.config import InitConfig, Split, SvdConfig
from lillama.data.tokens import TokenBlocks
from lillama.model.surgery import linear


def svd_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: TokenBlocks | None, config: InitConfig, progress: bool
) -> Iterator[tuple[str, Factors]]:
    """The start of every matrix by its truncated SVD."""
    assert isinstance(config, SvdConfig)
    for name, rank in ranks.items():
        weight = linear(teacher, name).weight.detach()
        yield name, svd_factors(weight=weight, rank=rank, symmetric=config.split is Split.symmetric)
