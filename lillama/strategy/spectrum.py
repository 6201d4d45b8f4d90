"""``strategy=spectrum``: ranks from the spectra of the outputs, at the least lost energy for the parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from lillama.algebra.allocation import allocate
from lillama.config import SpectrumConfig, StrategyConfig, Weighting
from lillama.model.targets import ModelShape
from lillama.strategy.lowest import room

# The eigenvalues of each named matrix's output second moment, descending, none below zero; made when it is called.
Spectra = Callable[[Sequence[str]], Mapping[str, Sequence[float]]]


def plan_spectrum(shape: ModelShape, target: int, config: StrategyConfig, spectra: Spectra) -> dict[str, int]:
    """Ranks that lose the least output energy, summed over the matrices, within the target.

    A matrix at rank r loses the eigenvalues after the r-th. ``weighting=relative`` counts them as a share of their
    sum, so that every matrix matters alike; ``absolute`` counts them as they are, so that large outputs matter more.
    No rank is below ``k``; ranks are multiples of ``round_to``. A matrix whose energy is worth its whole size stays
    dense, and so does one too small to save anything at rank ``k``. What is left of the budget is too little for
    another step of any matrix.

    :param spectra: asked once, for the matrices that may be cut, and not where the target is out of reach.
    :raises ConfigError: where the matrices together are too small for the budget.
    Source: a marginal-gain allocation (:func:`allocate`) over the loss that Eq. 3 of the paper minimises.
    """
    assert isinstance(config, SpectrumConfig)
    shared = room(shape, target, config, why="for spectrum")
    known = spectra([matrix.name for matrix in shared.matrices])
    ladders = [list(range(shared.lowest, matrix.largest_rank + 1, config.round_to)) for matrix in shared.matrices]
    pairs = list(zip(shared.matrices, ladders, strict=True))
    sizes = allocate(
        costs=[[*(matrix.cost(rank) for rank in ranks), matrix.parameters] for matrix, ranks in pairs],
        losses=[[*_lost(known[matrix.name], ranks, config.weighting), 0.0] for matrix, ranks in pairs],
        budget=shared.budget,
    )
    chosen = zip(pairs, sizes, strict=True)
    return {matrix.name: ranks[size] for (matrix, ranks), size in chosen if size < len(ranks)}


def _lost(values: Sequence[float], ranks: Iterable[int], weighting: Weighting) -> list[float]:
    """The energy that each rank loses."""
    after = [*accumulate(reversed(values), initial=0.0)][::-1]  # from the smallest: that the tail keeps its digits
    scale = after[0] if weighting is Weighting.relative else 1.0
    return [after[rank] / (scale or 1.0) for rank in ranks]
