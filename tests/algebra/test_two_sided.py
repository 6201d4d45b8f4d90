"""The two-sided factorisation: the least possible rise of the quadratic loss, on any moments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.factorize import feature_factors
from lillama.algebra.two_sided import (
    Metric,
    predicted_rise,
    root_of,
    shrunk,
    stacked,
    two_sided_spectrum,
)

DAMPING = {"input_damping": 1e-9, "output_damping": 1e-9}


def moment(size: int, generator: torch.Generator, samples: int | None = None) -> torch.Tensor:
    rows = torch.randn(samples or 4 * size, size, generator=generator, dtype=torch.float64)
    rows = rows * torch.logspace(0, -2, size, dtype=torch.float64)
    return rows.T @ rows / len(rows)


def rise(weight, factors, inputs, outputs):
    """Half of tr(D^T G D C)."""
    change = weight.double() - factors.a.double() @ factors.b.double()
    outputs = torch.diag(outputs) if outputs.dim() == 1 else outputs
    return 0.5 * float((change.T @ outputs @ change @ inputs).trace())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.booleans(), st.data())
def test_no_factors_do_better_and_the_rise_is_the_predicted_one(out, inner, diagonal, data):
    rank = data.draw(st.integers(1, min(out, inner)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    weight = torch.randn(out, inner, generator=generator)
    inputs, outputs = moment(inner, generator), moment(out, generator)
    outputs = outputs.diagonal() if diagonal else outputs
    spectrum = two_sided_spectrum(weight=weight, inputs=inputs, outputs=outputs, columns=None, **DAMPING)
    # The optimum by another way: symmetric roots and a singular value decomposition.
    left, right = (symmetric_root(torch.diag(m) if m.dim() == 1 else m) for m in (outputs, inputs))
    singular = torch.linalg.svdvals(left @ weight.double() @ right)
    best = 0.5 * float(singular[rank:].square().sum())
    scale = 0.5 * float(singular.square().sum())
    assert rise(weight, spectrum.cut(rank), inputs, outputs) == pytest.approx(best, rel=1e-3, abs=1e-5 * scale)
    assert predicted_rise(spectrum.values, rank) == pytest.approx(best, rel=1e-3, abs=1e-5 * scale)


def symmetric_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_full_rank_factors_give_the_matrix_back(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator)
    spectrum = two_sided_spectrum(
        weight=weight, inputs=moment(shape[1], generator), outputs=moment(shape[0], generator), columns=None, **DAMPING
    )
    factors = spectrum.cut(min(shape))
    torch.testing.assert_close(factors.a @ factors.b, weight, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="rank"):
        spectrum.cut(min(shape) + 1)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_with_no_metric_on_the_outputs_it_is_the_feature_start(shape):
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(*shape, generator=generator), moment(shape[1], generator)
    ones = torch.ones(shape[0], dtype=torch.float64)
    mine = two_sided_spectrum(weight=weight, inputs=inputs, outputs=ones, columns=None, **DAMPING).cut(3)
    known = feature_factors(weight=weight, moment=inputs, rank=3, floor=1e-9)
    torch.testing.assert_close(mine.a @ mine.b, known.a @ known.b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_moments_that_are_singular_or_badly_scaled_never_fail(samples, scale):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 12, generator=generator)
    few = [scale * (moment(size, generator, samples) if samples else torch.zeros(size, size)) for size in (12, 8)]
    spectrum = two_sided_spectrum(
        weight=weight, inputs=few[0], outputs=few[1], input_damping=1e-6, output_damping=1e-2, columns=None
    )
    factors = spectrum.cut(8)
    torch.testing.assert_close(factors.a @ factors.b, weight, atol=1e-2, rtol=1e-2)
    assert spectrum.undetermined(8) >= 8 - samples


def test_fewer_columns_are_the_first_ones_and_experts_are_stacked():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 6, 5, generator=generator)
    metrics = [{"inputs": moment(5, generator), "outputs": moment(6, generator)} for _ in range(2)]
    whole = [two_sided_spectrum(weight=w, columns=None, **m, **DAMPING) for w, m in zip(weight, metrics, strict=True)]
    some = [two_sided_spectrum(weight=w, columns=3, **m, **DAMPING) for w, m in zip(weight, metrics, strict=True)]
    both = stacked(some, weight)
    for expert in range(2):
        one, other = whole[expert].cut(3), both.cut(3)
        assert torch.equal(one.b, other.b[expert])
        torch.testing.assert_close(one.a, other.a[expert])
    assert predicted_rise(both.values, 3) == pytest.approx(sum(predicted_rise(s.values, 3) for s in whole))


def test_shrinking_goes_from_the_full_moment_to_its_diagonal():
    full = moment(5, torch.Generator().manual_seed(4))
    assert torch.equal(shrunk(full, 0), full)
    torch.testing.assert_close(shrunk(full, 1), torch.diag(full.diagonal()))
    assert torch.equal(shrunk(full.diagonal(), 0.5), full.diagonal())


def test_a_root_from_eigenvalues_serves_where_cholesky_fails():
    rows = torch.ones(4, 4, dtype=torch.float64)
    rows[0, 0] -= 1e-15  # an eigenvalue just below zero
    factor = root_of(rows - 1e-17 * torch.eye(4)).values
    torch.testing.assert_close(factor @ factor.T, rows, atol=1e-12, rtol=0)
    assert torch.equal(Metric(torch.zeros(3, 3), 0.1).value, torch.eye(3, dtype=torch.float64))
