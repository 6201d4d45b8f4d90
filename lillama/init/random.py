"""``init=random``: normal factors, seeded by the matrix's name, so that a matrix starts alike in every plan."""

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from lillama.algebra.factorize import Factors, random_factors
from lillama.config import InitConfig, RandomConfig
from lillama.data.calibration import Calibration
from lillama.model.surgery import matrix


def random_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: Calibration | None, config: InitConfig, progress: bool
) -> Iterator[tuple[str, Factors]]:
    """The start of every matrix by seeded normal numbers, drawn on the CPU: the same on every device."""
    assert isinstance(config, RandomConfig)
    for name, rank in ranks.items():
        generator = torch.Generator().manual_seed(config.seed + zlib.crc32(name.encode()))
        yield name, random_factors(shape=matrix(teacher, name).shape, rank=rank, generator=generator)
