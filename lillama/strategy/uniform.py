"""The same fraction of every matrix (Section 5)."""

import math
from collections.abc import Sequence

from lillama.algebra.ranks import dense_parameters, factor_parameters, largest_saving_rank
from lillama.config import Rounding, StrategyConfig, UniformConfig
from lillama.errors import ConfigError
from lillama.model.targets import ModelShape, Target


def plan_uniform(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """One fraction for all matrices.

    ``fraction_of=parameters``: every matrix keeps the share that brings the whole model, embeddings included, to the
    target. Ranks are rounded down to multiples of ``round_to``; what that leaves free goes to the matrices that lost
    most by rounding, so the total is at most the target and as near to it as one more step allows. Matrices too small
    to save anything at one step of rank stay dense.
    ``fraction_of=rank``: the authors' formula, (1 - reduction) of the largest rank that saves, rounded up to a
    multiple of 8 or ``round_to``; the model then shrinks by less than asked.

    :raises ConfigError: where the matrices together are too small for the budget.
    """
    assert isinstance(config, UniformConfig)
    if config.fraction_of is Rounding.rank:
        return _fraction_of_rank(shape, target, max(8, config.round_to))
    step = config.round_to
    matrices = [matrix for matrix in shape.targets if largest_saving_rank(matrix.shape) >= step]
    held = sum(matrix.parameters for matrix in matrices)
    keep = 1 - (shape.parameters - target) / max(held, 1)
    exact = {matrix.name: keep * dense_parameters(matrix.shape) / sum(matrix.shape) for matrix in matrices}
    ranks = {matrix.name: math.floor(exact[matrix.name] / step) * step for matrix in matrices}
    if not matrices or min(ranks.values()) < 1:
        raise ConfigError(_out_of_reach(shape, target, step, matrices))
    free = target - (shape.parameters - held) - sum(_size(matrix, ranks) for matrix in matrices)
    for matrix in sorted(matrices, key=lambda matrix: ranks[matrix.name] - exact[matrix.name]):
        price = matrix.copies * factor_parameters(matrix.shape, step)
        if price <= free and ranks[matrix.name] + step <= largest_saving_rank(matrix.shape):
            ranks[matrix.name] += step
            free -= price
    return ranks


def _fraction_of_rank(shape: ModelShape, target: int, multiple: int) -> dict[str, int]:
    keep = target / shape.parameters
    largest = {matrix.name: largest_saving_rank(matrix.shape) for matrix in shape.targets}
    rounded = {name: math.ceil(keep * rank / multiple) * multiple for name, rank in largest.items()}
    return {name: rank for name, rank in rounded.items() if 0 < rank <= largest[name]}


def _size(matrix: Target, ranks: dict[str, int]) -> int:
    return matrix.copies * factor_parameters(matrix.shape, ranks[matrix.name])


def _out_of_reach(shape: ModelShape, target: int, step: int, matrices: Sequence[Target]) -> str:
    """The message that names the largest reduction: the smallest matrix must keep one step of rank."""
    asked = 1 - target / shape.parameters
    held = sum(matrix.parameters for matrix in matrices)
    least_kept = max((step * sum(m.shape) / dense_parameters(m.shape) for m in matrices), default=1.0)
    reach = max(0.0, (1 - least_kept) * held / shape.parameters)
    return f"strategy.reduction={asked:.4g}: out of reach for uniform; the largest possible is {reach:.1%}"
