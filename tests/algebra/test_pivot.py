"""Pivoted factors: the same product in fewer numbers, and well conditioned whatever is pivoted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.pivot import LARGEST, pivoted
from lillama.algebra.ranks import factor_parameters
from lillama.algebra.spectrum import Factors
from lillama.config import FactorForm
from lillama.model.lowrank import product


@st.composite
def factors(draw):
    """Factors of any shape, of rows of very different sizes, some of which say nothing new."""
    out, inner = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rank = draw(st.integers(1, min(out, inner)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scales = 10.0 ** -torch.linspace(0, draw(st.integers(0, 12)), rank, dtype=torch.float64)
    a = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    b = scales[:, None] * torch.randn(rank, inner, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        b[-1] = b[0]
    return Factors(a, b)


@given(factors())
@settings(deadline=None, max_examples=200)
def test_the_product_is_the_same_and_the_numbers_are_as_many_as_the_plan_counts(plain):
    made = pivoted(plain)
    (out, rank), inner = plain.a.shape, plain.b.shape[1]
    whole = plain.a @ plain.b
    assert float((product(*made) - whole).norm()) <= 1e-10 * float(whole.norm())
    assert made.a.numel() + made.b.numel() == factor_parameters((out, inner), rank, FactorForm.pivoted)
    pivots, rest = made.pivots.tolist(), made.rest.tolist()
    assert made.pivots.dtype == made.rest.dtype == torch.int32
    assert (pivots, rest) == (sorted(pivots), sorted(rest))
    assert sorted(pivots + rest) == list(range(inner))
    assert float(made.b.abs().max() if made.b.numel() else 0) <= LARGEST + 1e-6
    torch.testing.assert_close(made.a, whole[:, pivots])


@given(factors())
@settings(deadline=None, max_examples=30)
def test_the_same_factors_have_the_same_pivots(plain):
    one, two = pivoted(plain), pivoted(Factors(plain.a.clone(), plain.b.clone()))
    assert all(torch.equal(own, other) for own, other in zip(one, two, strict=True))


def test_pivots_do_not_depend_on_which_basis_of_the_rows_is_given():
    torch.manual_seed(0)
    a, b, turn = torch.randn(9, 4).double(), torch.randn(4, 12).double(), torch.randn(4, 4).double()
    one, two = pivoted(Factors(a, b)), pivoted(Factors(a @ turn.inverse(), turn @ b))
    torch.testing.assert_close(product(*one), product(*two))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_has_the_dtype_of_the_factors(dtype):
    torch.manual_seed(0)
    plain = Factors(torch.randn(40, 16).to(dtype), torch.randn(16, 30).to(dtype))
    made = pivoted(plain)
    assert made.a.dtype == made.b.dtype == dtype
    whole = plain.a.double() @ plain.b.double()
    exact = product(made.a.double(), made.b.double(), made.pivots, made.rest)
    assert float((exact - whole).norm()) <= 2 * torch.finfo(dtype).eps * float(whole.norm())


def test_experts_have_pivots_of_their_own():
    torch.manual_seed(0)
    plain = Factors(torch.randn(3, 7, 2), torch.randn(3, 2, 9))
    made = pivoted(plain)
    assert (made.pivots.shape, made.rest.shape) == ((3, 2), (3, 7))
    torch.testing.assert_close(product(*made), plain.a @ plain.b)
    alone = pivoted(Factors(plain.a[1], plain.b[1]))
    assert torch.equal(made.pivots[1], alone.pivots)


def test_factors_of_nothing_are_pivoted_too():
    made = pivoted(Factors(torch.zeros(5, 2), torch.zeros(2, 6)))
    assert bool(product(*made).eq(0).all())
    assert bool(made.b.isfinite().all())
