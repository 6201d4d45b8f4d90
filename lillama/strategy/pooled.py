"""Share one budget out among matrices by what each of their ranks loses, in a unit that is the same for all."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from lillama.algebra.allocation import allocate
from lillama.model.targets import ModelShape
from lillama.strategy.budget import Pooled, room

# Of each named matrix the squared singular values that its factors are cut from, descending; made when it is called.
Spectra = Callable[[Sequence[str]], Mapping[str, Sequence[float]]]


def pooled_ranks(
    shape: ModelShape,
    target: int,
    config: Pooled,
    spectra: Spectra,
    *,
    why: str,
    relative: bool = False,
) -> dict[str, int]:
    """Choose ranks that lose the least, summed over the matrices, within the target.

    A matrix at rank r loses the values after the r-th. No rank is below ``config.k``; ranks are multiples of
    ``config.round_to``. A matrix that is worth its whole size stays dense, and so does one too small to save anything
    at the lowest rank. What is left of the budget is too little for another step of any matrix.

    :param spectra: asked once, for the matrices that may be cut, and not where the target is out of reach.
    :param why: the strategy, for errors. :param relative: count what is lost as a share of the matrix's own sum.
    :raises ConfigError: where the matrices together are too small for the budget.
    Source: a marginal-gain allocation (:func:`allocate`).
    """
    shared = room(shape, target, config, why=why)
    known = spectra([matrix.name for matrix in shared.matrices])
    ladders = [list(range(shared.lowest, matrix.largest_rank + 1, config.round_to)) for matrix in shared.matrices]
    pairs = list(zip(shared.matrices, ladders, strict=True))
    sizes = allocate(
        costs=[[*(matrix.cost(rank) for rank in ranks), matrix.parameters] for matrix, ranks in pairs],
        losses=[[*_lost(known[matrix.name], ranks, relative), 0.0] for matrix, ranks in pairs],
        budget=shared.budget,
    )
    chosen = zip(pairs, sizes, strict=True)
    return {matrix.name: ranks[size] for (matrix, ranks), size in chosen if size < len(ranks)}


def lost_after(values: Sequence[float]) -> list[float]:
    """Sum the values after each rank, from 0 to all of them; from the smallest, so that the tail keeps its digits."""
    return [*accumulate(reversed(values), initial=0.0)][::-1]


def _lost(values: Sequence[float], ranks: Sequence[int], relative: bool) -> list[float]:
    after = lost_after(values)
    scale = after[0] if relative else 1.0
    return [after[rank] / (scale or 1.0) for rank in ranks]
