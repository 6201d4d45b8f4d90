"""Rank, parameters and reduction: the one home of the rank formula.

A matrix W [out, in] has out * in parameters; its factors A [out, r] and B [r, in] have r * (out + in).
"""

import math


def dense_parameters(shape: tuple[int, int]) -> int:
    """Parameters of a dense matrix of shape [out, in]."""
    return math.prod(shape)


def factor_parameters(shape: tuple[int, int], rank: int) -> int:
    """Parameters of the two factors of a matrix of shape [out, in] at a rank (Section 3.1)."""
    return rank * sum(shape)


def saves(shape: tuple[int, int], rank: int) -> bool:
    """Whether the factors are smaller than the matrix (line 5 of Algorithm 1)."""
    return factor_parameters(shape, rank) < dense_parameters(shape)


def largest_saving_rank(shape: tuple[int, int]) -> int:
    """The largest rank at which the factors are smaller than the matrix; 0 where there is none."""
    return (dense_parameters(shape) - 1) // sum(shape)


def candidate_ranks(shape: tuple[int, int], *, k: int, m: int) -> list[int]:
    """The ranks of Algorithm 1, lines 4 to 6: k, k + m, ... up to min(out, in), where they save; ascending."""
    return [rank for rank in range(k, min(shape) + 1, m) if saves(shape, rank)]
