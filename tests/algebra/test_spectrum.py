"""A cut of a whole factorisation is the factorisation at its rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.factorize import (
    embedding_spectrum,
    feature_spectrum,
    moment_root,
    ridge,
    stacked_spectra,
    svd_spectrum,
    undetermined,
)
from tests.algebra.test_factorize import FLOOR, SHAPES, SIZES, moment_of, weight_of


def directly(w, moment, rank):
    """The textbook way at one rank, in float64: the leading singular vectors of W C^(1/2)."""
    a = torch.linalg.svd(w.double() @ moment_root(moment, FLOOR), full_matrices=False).U[:, :rank]
    return a @ (a.T @ w.double())


@given(SIZES, st.integers(1, 40), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=60)
def test_every_cut_has_the_error_of_the_factorisation_at_its_rank(shape, tokens, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    w, moment = weight_of(shape, seed), moment_of(shape[1], tokens, seed + 1)[0]
    ridged = moment + ridge(moment, FLOOR) * torch.eye(shape[1])

    def error(product):
        rest = w.double() - product
        return float((rest @ ridged @ rest.T).trace())

    a, b = feature_spectrum(weight=w, moment=moment, floor=FLOOR).cut(rank)
    assert error(a.double() @ b.double()) == pytest.approx(error(directly(w, moment, rank)), abs=1e-6 * error(0))
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    plain = (u[:, :rank] * s[:rank]) @ vh[:rank]
    for symmetric in (False, True):
        a, b = svd_spectrum(weight=w).cut(rank, symmetric=symmetric)
        own, best = ((w.double() - product).square().sum() for product in (a.double() @ b.double(), plain))
        assert float(own) == pytest.approx(float(best), abs=1e-6 * float(w.square().sum()))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_does_not_depend_on_how_many_columns_are(shape):
    w, moment = weight_of(shape), moment_of(shape[1], 50)[0]
    counts = torch.arange(shape[0])
    for make in (
        lambda columns: svd_spectrum(weight=w, columns=columns),
        lambda columns: feature_spectrum(weight=w, moment=moment, floor=FLOOR, columns=columns),
        lambda columns: embedding_spectrum(weight=w, counts=counts, floor=FLOOR, columns=columns),
    ):
        few, whole = make(4), make(None)
        assert few.columns == 4
        assert torch.equal(few.values, whole.values), "all values, of however many columns"
        for one, other in zip(few.cut(3), whole.cut(3), strict=True):
            assert torch.equal(one, other)
        with pytest.raises(ValueError, match="rank 5"):
            few.cut(5)


def test_the_values_are_the_energies_of_the_outputs():
    w, (moment, x) = weight_of((20, 12)), moment_of(12, 300)
    energies = torch.linalg.svdvals(x @ w.double().T)[:12].square() / len(x)
    values = feature_spectrum(weight=w, moment=moment, floor=FLOOR).values
    torch.testing.assert_close(values, energies, rtol=1e-4, atol=1e-8 * float(energies[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_without_data_are_counted_at_every_rank(shape):
    w, moment = weight_of(shape), moment_of(shape[1], 3)[0]
    spectrum = feature_spectrum(weight=w, moment=moment, floor=FLOOR)
    for rank in range(1, min(shape) + 1):
        b = spectrum.cut(rank).b
        assert spectrum.undetermined(rank) == undetermined(b=b, moment=moment, floor=FLOOR)


def test_the_stacked_spectra_of_experts_cut_as_each():
    weights = torch.stack([weight_of((12, 9), seed) for seed in range(3)])
    moments = [moment_of(9, 20, seed)[0] for seed in range(3)]
    single = [feature_spectrum(weight=w, moment=c, floor=FLOOR) for w, c in zip(weights, moments, strict=True)]
    pair = stacked_spectra(single, weights).cut(4)
    for expert, spectrum in enumerate(single):
        assert torch.equal(pair.a[expert], spectrum.cut(4).a)
        assert torch.equal(pair.b[expert], spectrum.cut(4).b)
