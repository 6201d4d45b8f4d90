from hypothesis import given
from hypothesis import strategies as st

from lillama.algebra.ranks import (
    candidate_ranks,
    dense_parameters,
    factor_parameters,
    largest_saving_rank,
    saves,
)

shapes = st.tuples(st.integers(1, 400), st.integers(1, 400))


@given(shapes, st.integers(1, 400))
def test_a_rank_saves_exactly_when_its_factors_are_smaller(shape, rank):
    smaller = sum(numel for numel in (shape[0] * rank, rank * shape[1])) < shape[0] * shape[1]
    assert saves(shape, rank) == smaller
    assert factor_parameters(shape, rank) == shape[0] * rank + rank * shape[1]


@given(shapes)
def test_the_largest_saving_rank_saves_and_the_next_does_not(shape):
    rank = largest_saving_rank(shape)
    assert rank == 0 or saves(shape, rank)
    assert not saves(shape, rank + 1)
    assert dense_parameters(shape) == shape[0] * shape[1]


@given(shapes, st.integers(1, 100), st.integers(1, 50))
def test_candidates_are_every_step_from_k_that_saves(shape, k, m):
    expected = [r for r in range(k, min(shape) + 1) if (r - k) % m == 0 and r * sum(shape) < shape[0] * shape[1]]
    assert candidate_ranks(shape, k=k, m=m) == expected


def test_candidates_include_the_smaller_dimension_where_it_saves():
    # 300 x 100 at rank 75 saves (30000 > 75 * 400 is false: equal does not), at 74 it does.
    assert candidate_ranks((1000, 10), k=9, m=1) == [9]
    assert candidate_ranks((300, 100), k=74, m=1) == [74]
