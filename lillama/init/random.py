"""``init=random``: normal factors, seeded by the matrix's name, so that a matrix starts alike in every plan."""

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lillama.algebra.factorize import Factors, random_factors
from lillama.config import InitConfig, RandomConfig
from lillama.data.tokens import TokenBlocks


def random_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: TokenBlocks, config: InitConfig, progress: bool
) -> Callable[[str, Tensor, int], Factors]:
    """The start of every matrix by seeded normal numbers, drawn on the CPU: the same on every device."""
    assert isinstance(config, RandomConfig)
    seed = config.seed

    def start(name: str, weight: Tensor, rank: int) -> Factors:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        return random_factors(shape=(weight.shape[0], weight.shape[1]), rank=rank, generator=generator)

    return start
