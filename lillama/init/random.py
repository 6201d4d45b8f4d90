"""``init=random``: normal factors, seeded by the matrix's name, so that a matrix starts alike in every plan."""

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from lillama.algebra.factorize import random_factors
from lillama.algebra.spectrum import Factors
from lillama.config import InitConfig, RandomConfig
from lillama.data.calibration import Calibration
from lillama.init.notes import StartNotes
from lillama.init.spectra import FactorCache
from lillama.model.surgery import matrix


def random_start(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    config: InitConfig,
    *,
    data: Calibration | None,
    cache: FactorCache | None,
    progress: bool,
    notes: StartNotes,
) -> Iterator[tuple[str, Factors]]:
    """Yield the start of every matrix by seeded normal numbers, drawn on the CPU: the same on every device."""
    assert isinstance(config, RandomConfig)
    for name, rank in ranks.items():
        generator = torch.Generator().manual_seed(config.seed + zlib.crc32(name.encode()))
        yield name, random_factors(shape=matrix(teacher, name).shape, rank=rank, generator=generator)
