"""Algorithm 1 of the paper: bottom layers first."""

from collections.abc import Sequence

from lillama.config import BottomConfig, StrategyConfig
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape
from lillama.strategy.plan import out_of_reach


def plan_bottom(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Ranks by Algorithm 1, layers in increasing order.

    :raises ConfigError: where no matrix has a candidate rank, or the budget is out of reach.
    """
    assert isinstance(config, BottomConfig)
    return layer_first(shape, target, config, order=layers(shape))


def layers(shape: ModelShape) -> list[int]:
    """Return the numbers of the blocks that hold targets, in the order in which they run."""
    return sorted({matrix.block for matrix in shape.targets})


def layer_first(shape: ModelShape, target: int, config: BottomConfig, *, order: Sequence[int]) -> dict[str, int]:
    """Algorithm 1 over the layers in the given order.

    Candidates (r, W) are sorted by layer, then by rank in decreasing order, then in module order; each replaces W,
    or the factors that W already has, until the model has at most ``target`` parameters.
    """
    position = {layer: place for place, layer in enumerate(order)}
    k, m = config.k, config.m
    candidates = [(rank, matrix) for matrix in shape.targets for rank in matrix.candidates(k=k, m=m)]
    candidates.sort(key=lambda candidate: (position[candidate[1].block], -candidate[0]))
    if not candidates:
        largest = max(min(matrix.shape) for matrix in shape.targets)
        raise ConfigError(f"strategy.k={k}: no matrix has a rank that saves; the largest matrix has rank {largest}")
    ranks: dict[str, int] = {}
    size = shape.parameters
    for rank, matrix in candidates:
        if size <= target:
            return ranks
        before = matrix.cost(ranks[matrix.name]) if matrix.name in ranks else matrix.parameters
        size += matrix.cost(rank) - before
        ranks[matrix.name] = rank
    if size > target:
        hint = "a smaller strategy.k reaches further"
        raise out_of_reach(shape, target, size, config, why=f"with k={config.k}, m={config.m} ({hint})")
    return ranks
