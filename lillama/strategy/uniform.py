"""The same fraction of every matrix (Section 5)."""

import math
from collections.abc import Sequence

from lillama.config import Rounding, StrategyConfig, UniformConfig
from lillama.model.targets import ModelShape, Target
from lillama.strategy.budget import room


def plan_uniform(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """One fraction for all matrices.

    ``fraction_of=parameters``: every matrix keeps the share that brings the whole model, embeddings included, to the
    target. No rank is below ``k``: matrices that would fall under it stay at it, and the others give more. Ranks are
    rounded down to multiples of ``round_to``; what that leaves free goes to the matrices that lost most by rounding,
    so the total is at most the target and as near to it as one more step allows. Matrices too small to save anything
    at rank ``k`` stay dense.
    ``fraction_of=rank``: the authors' formula, (1 - reduction) of the largest rank that saves, rounded up to a
    multiple of 8 or ``round_to``; the model then shrinks by less than asked.

    :raises ConfigError: where the matrices together are too small for the budget.
    """
    assert isinstance(config, UniformConfig)
    if config.fraction_of is Rounding.rank:
        return _fraction_of_rank(shape, target, max(8, config.round_to))
    step, shared = config.round_to, room(shape, target, config, why="for uniform")
    matrices, lowest = shared.matrices, shared.lowest
    exact = _exact_ranks(matrices, shared.budget, lowest)
    ranks = {matrix.name: max(lowest, math.floor(exact[matrix.name] / step) * step) for matrix in matrices}
    free = shared.budget - sum(matrix.cost(ranks[matrix.name]) for matrix in matrices)
    for matrix in sorted(matrices, key=lambda matrix: ranks[matrix.name] - exact[matrix.name]):
        rank = ranks[matrix.name]
        price = matrix.cost(rank + step) - matrix.cost(rank)
        if price <= free and matrix.saves(rank + step):
            ranks[matrix.name] = rank + step
            free -= price
    return ranks


def _exact_ranks(matrices: Sequence[Target], budget: int, lowest: int) -> dict[str, float]:
    """The ranks, not rounded, at which the matrices keep one share and fill the budget, none below ``lowest``."""
    exact = {matrix.name: float(lowest) for matrix in matrices}
    free = list(matrices)
    while free:
        pinned = sum(matrix.cost(lowest) for matrix in matrices if matrix not in free)
        keep = (budget - pinned) / sum(matrix.parameters for matrix in free)
        wanted = {matrix.name: matrix.rank_of_share(keep) for matrix in free}
        above = [matrix for matrix in free if wanted[matrix.name] >= lowest]
        if len(above) == len(free):
            return exact | wanted
        free = above
    return exact


def _fraction_of_rank(shape: ModelShape, target: int, multiple: int) -> dict[str, int]:
    keep = target / shape.parameters
    largest = {matrix.name: matrix.largest_rank for matrix in shape.targets}
    rounded = {name: math.ceil(keep * rank / multiple) * multiple for name, rank in largest.items()}
    return {name: rank for name, rank in rounded.items() if 0 < rank <= largest[name]}
