"""``init=svd``: the weights alone (Eq. 2)."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from lillama.algebra.factorize import Factors, svd_factors
from lillama.config import InitConfig, Split, SvdConfig
from lillama.data.tokens import TokenBlocks


def svd_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: TokenBlocks, config: InitConfig, progress: bool
) -> Callable[[str, Tensor, int], Factors]:
    """The start of every matrix by its truncated SVD."""
    assert isinstance(config, SvdConfig)
    symmetric = config.split is Split.symmetric
    return lambda name, weight, rank: svd_factors(weight=weight, rank=rank, symmetric=symmetric)
