"""Rank, parameters and reduction: the one home of the rank formula.

A matrix W [out, in] has out * in parameters. Its plain factors A [out, r] and B [r, in] have r * (out + in). Of pivoted
factors r columns of B are the identity, which is stored nowhere: r * (out + in - r) (:mod:`lillama.algebra.pivot`).
"""

import math

from lillama.config import FactorForm

PLAIN, PIVOTED = FactorForm.plain, FactorForm.pivoted


def dense_parameters(shape: tuple[int, int]) -> int:
    """Parameters of a dense matrix of shape [out, in]."""
    return math.prod(shape)


def factor_parameters(shape: tuple[int, int], rank: int, form: FactorForm = PLAIN) -> int:
    """Parameters of the two factors of a matrix of shape [out, in] at a rank (Section 3.1).

    >>> factor_parameters((576, 1536), 100), factor_parameters((576, 1536), 100, PIVOTED)
    (211200, 201200)
    """
    return rank * (sum(shape) - (rank if form is PIVOTED else 0))


def saves(shape: tuple[int, int], rank: int, form: FactorForm = PLAIN) -> bool:
    """Tell whether the factors are smaller than the matrix (line 5 of Algorithm 1)."""
    return rank <= largest_saving_rank(shape, form)


def largest_saving_rank(shape: tuple[int, int], form: FactorForm = PLAIN) -> int:
    """Return the largest rank at which the factors are smaller than the matrix; 0 where there is none.

    Pivoted factors save at every rank below min(out, in), where r * (out + in - r) comes to out * in.

    >>> largest_saving_rank((576, 1536)), largest_saving_rank((576, 1536), PIVOTED)
    (418, 575)
    """
    return min(shape) - 1 if form is PIVOTED else (dense_parameters(shape) - 1) // sum(shape)


def candidate_ranks(shape: tuple[int, int], *, k: int, m: int, form: FactorForm = PLAIN) -> list[int]:
    """Return the ranks of Algorithm 1, lines 4 to 6: k, k + m, ... up to min(out, in), where they save; ascending.

    >>> candidate_ranks((576, 1536), k=144, m=72)
    [144, 216, 288, 360]
    """
    return list(range(k, largest_saving_rank(shape, form) + 1, m))


def exact_rank(shape: tuple[int, int], parameters: float, form: FactorForm = PLAIN) -> float:
    """Return the rank, not rounded, at which the factors have so many parameters, which are at most the matrix's.

    >>> exact_rank((1024, 1024), 1024 * 1024 / 2)
    256.0
    """
    total = sum(shape)
    if form is PLAIN:
        return parameters / total
    return (total - math.sqrt(max(total**2 - 4 * parameters, 0.0))) / 2
