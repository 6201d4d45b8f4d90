import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.factorize import (
    embedding_factors,
    feature_factors,
    moment_root,
    random_factors,
    svd_factors,
    undetermined,
)

FLOOR = 1e-9
SIZES = st.tuples(st.integers(2, 16), st.integers(2, 16))
SHAPES = [(12, 12), (20, 8), (8, 20)]


def weight_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moment_of(size, tokens, seed=1):
    x = torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.logspace(0, -3, size, dtype=torch.float64)  # a spectrum that falls, as activations have
    return x.T @ x / tokens, x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_svd_at_full_rank_gives_back_w(shape, symmetric):
    w = weight_of(shape)
    a, b = svd_factors(weight=w, rank=min(shape), symmetric=symmetric)
    torch.testing.assert_close(a @ b, w, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [0, 1, 5, 500])
def test_feature_at_full_rank_gives_back_w_with_any_number_of_tokens(shape, tokens):
    w = weight_of(shape)
    moment = moment_of(shape[1], tokens)[0] if tokens else torch.zeros(shape[1], shape[1])
    a, b = feature_factors(weight=w, moment=moment, rank=min(shape), floor=FLOOR)
    torch.testing.assert_close(a @ b, w, atol=1e-5, rtol=1e-5)


@given(SIZES, st.integers(0, 40), st.integers(0, 10**6), st.floats(-8, 8), st.data())
@settings(deadline=None, max_examples=60)
def test_feature_is_never_worse_on_its_own_tokens_than_svd(shape, tokens, seed, scale, data):
    """And never fails: few tokens, huge and tiny scales, ill-conditioned moments."""
    out, inner = shape
    rank = data.draw(st.integers(1, min(out, inner)))
    w = weight_of((out, inner), seed)
    moment, x = moment_of(inner, max(tokens, 1), seed + 1)
    moment, x = moment * 10**scale, x * 10 ** (scale / 2)
    a, b = feature_factors(weight=w, moment=moment, rank=rank, floor=FLOOR)
    assert a.shape == (out, rank)
    assert b.shape == (rank, inner)
    assert bool(a.isfinite().all() and b.isfinite().all())
    plain = svd_factors(weight=w, rank=rank)

    def error(factors):
        return float((x @ (w - factors[0] @ factors[1]).double().T).square().sum())

    slack = 1e-5 * float((x @ w.double().T).square().sum())
    assert error((a, b)) <= error(plain) + slack


def test_feature_reaches_the_optimum_of_eq_3():
    """The error on the tokens is the energy of the discarded output directions: no rank-r map has less."""
    w = weight_of((20, 12))
    moment, x = moment_of(12, 300)
    y = x @ w.double().T
    a, b = feature_factors(weight=w, moment=moment, rank=4, floor=FLOOR)
    error = (y - x @ (a @ b).double().T).square().sum()
    best = torch.linalg.svdvals(y)[4:].square().sum()
    torch.testing.assert_close(error, best, rtol=1e-4, atol=0)


def test_a_tall_matrix_may_bring_its_root():
    w, moment = weight_of((20, 8)), moment_of(8, 100)[0]
    given_root = feature_factors(weight=w, moment=moment, rank=3, floor=FLOOR, root=moment_root(moment, FLOOR))
    own_root = feature_factors(weight=w, moment=moment, rank=3, floor=FLOOR)
    torch.testing.assert_close(given_root.a @ given_root.b, own_root.a @ own_root.b)


def test_directions_without_data_are_counted():
    w = weight_of((10, 10))
    moment = moment_of(10, 3)[0]
    b = feature_factors(weight=w, moment=moment, rank=7, floor=FLOOR).b
    assert undetermined(b=b, moment=moment, floor=FLOOR) == 4
    assert undetermined(b=b[:3], moment=moment, floor=FLOOR) == 0


def test_eq_2_puts_the_singular_values_into_a_and_symmetric_into_both():
    w = weight_of((10, 7))
    s = torch.linalg.svdvals(w)[:3]
    a, b = svd_factors(weight=w, rank=3)
    torch.testing.assert_close(a.norm(dim=0), s)
    torch.testing.assert_close(b @ b.T, torch.eye(3), atol=1e-5, rtol=0)
    a, b = svd_factors(weight=w, rank=3, symmetric=True)
    torch.testing.assert_close(a.norm(dim=0), s.sqrt())
    torch.testing.assert_close(b.norm(dim=1), s.sqrt())


def test_random_factors_are_seeded_and_scaled():
    def draw(seed):
        return random_factors(shape=(300, 400), rank=50, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0).a, draw(0).a)
    assert not torch.equal(draw(0).a, draw(1).a)
    assert float(draw(0).b.std()) == pytest.approx(400**-0.5, rel=0.05)


@given(st.integers(0, 10**6), st.integers(1, 7))
@settings(deadline=None, max_examples=50)
def test_embedding_factors_have_the_least_error_over_the_tokens_as_they_occur(seed, rank):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(40, 8, generator=generator)
    counts = torch.randint(0, 50, (40,), generator=generator)

    def error(pair):
        return float((counts[:, None] * (table - pair.a @ pair.b).double().square()).sum())

    own = embedding_factors(weight=table, counts=counts, rank=rank, floor=1e-7)
    assert error(own) <= error(svd_factors(weight=table, rank=rank)) * (1 + 1e-5)
    torch.testing.assert_close(own.b @ own.b.T, torch.eye(rank), atol=1e-5, rtol=1e-5)


def test_an_embedding_without_counts_starts_by_svd():
    table = weight_of((40, 8)) * torch.arange(1, 9)  # singular values well apart
    own = embedding_factors(weight=table, counts=torch.zeros(40, dtype=torch.long), rank=3, floor=1e-7)
    svd = svd_factors(weight=table, rank=3)
    # By norm: a float32 decomposition is as exact as its largest singular value allows, entry by entry it is not.
    assert float((own.a @ own.b - svd.a @ svd.b).norm()) < 1e-5 * float(table.norm())


def test_factors_of_several_experts_are_those_of_each():
    weights = torch.randn(3, 6, 9)
    for symmetric in (False, True):
        batched = svd_factors(weight=weights, rank=2, symmetric=symmetric)
        for expert, weight in enumerate(weights):
            single = svd_factors(weight=weight, rank=2, symmetric=symmetric)
            torch.testing.assert_close(batched.a[expert] @ batched.b[expert], single.a @ single.b)
    drawn = random_factors(shape=(3, 6, 9), rank=2, generator=torch.Generator().manual_seed(0))
    assert (drawn.a.shape, drawn.b.shape) == ((3, 6, 2), (3, 2, 9))
