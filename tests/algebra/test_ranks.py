import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.algebra.ranks import (
    candidate_ranks,
    dense_parameters,
    exact_rank,
    factor_parameters,
    largest_saving_rank,
    saves,
)
from lillama.config import FactorForm

shapes = st.tuples(st.integers(1, 400), st.integers(1, 400))
forms = st.sampled_from(FactorForm)


def stored(shape, rank, form):
    """The numbers of two factors, counted afresh; the identity that is r columns of a pivoted B is not stored."""
    out, inner = shape
    return out * rank + rank * (inner - rank if form is FactorForm.pivoted else inner)


@given(shapes, st.integers(1, 400), forms)
def test_a_rank_saves_exactly_when_its_factors_are_smaller(shape, rank, form):
    rank = min(rank, *shape)
    assert factor_parameters(shape, rank, form) == stored(shape, rank, form)
    assert saves(shape, rank, form) == (stored(shape, rank, form) < shape[0] * shape[1])


@given(shapes, forms)
def test_the_largest_saving_rank_saves_and_the_next_does_not(shape, form):
    rank = largest_saving_rank(shape, form)
    assert rank == 0 or saves(shape, rank, form)
    assert not saves(shape, rank + 1, form)
    assert dense_parameters(shape) == shape[0] * shape[1]


@given(shapes, st.integers(1, 100), st.integers(1, 50), forms)
def test_candidates_are_every_step_from_k_that_saves(shape, k, m, form):
    expected = [
        r for r in range(k, min(shape) + 1) if (r - k) % m == 0 and stored(shape, r, form) < shape[0] * shape[1]
    ]
    assert candidate_ranks(shape, k=k, m=m, form=form) == expected


@given(shapes, st.floats(0, 1), forms)
def test_the_exact_rank_has_so_many_parameters(shape, share, form):
    rank = exact_rank(shape, share * dense_parameters(shape), form)
    inner = shape[1] - (rank if form is FactorForm.pivoted else 0)
    assert rank * (shape[0] + inner) == pytest.approx(share * dense_parameters(shape), rel=1e-6, abs=1e-6)


def test_candidates_include_the_smaller_dimension_where_it_saves():
    # 300 x 100 at rank 75 saves (30000 > 75 * 400 is false: equal does not), at 74 it does.
    assert candidate_ranks((1000, 10), k=9, m=1) == [9]
    assert candidate_ranks((300, 100), k=74, m=1) == [74]
