"""Find what a strategy with a smallest rank shares out: the matrices that save at it, and their part of the budget."""

import math
from dataclasses import dataclass

from lillama.config import KfacRanksConfig, MeasuredRanksConfig, SpectrumConfig, UniformConfig
from lillama.model.targets import ModelShape, Target
from lillama.strategy.plan import out_of_reach


@dataclass(frozen=True, slots=True)
class RankBudget:
    """The ``matrices`` that become smaller at rank ``lowest``, and the parameters that they may have together."""

    matrices: list[Target]
    lowest: int
    budget: int


Pooled = SpectrumConfig | KfacRanksConfig | MeasuredRanksConfig


def room(shape: ModelShape, target: int, config: UniformConfig | Pooled, *, why: str) -> RankBudget:
    """Count what there is to share out; ``lowest`` is ``config.k`` rounded up to a multiple of ``config.round_to``.

    :raises ConfigError: where all of them at the lowest rank are still above the target.
    """
    lowest = math.ceil(config.k / config.round_to) * config.round_to
    matrices = [matrix for matrix in shape.targets if matrix.saves(lowest)]
    untouched = shape.parameters - sum(matrix.parameters for matrix in matrices)
    smallest = untouched + sum(matrix.cost(lowest) for matrix in matrices)
    if smallest > target:
        raise out_of_reach(shape, target, smallest, config, why=why)
    return RankBudget(matrices, lowest, target - untouched)
