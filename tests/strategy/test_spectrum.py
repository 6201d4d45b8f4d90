"""``strategy=spectrum``: within the budget, and the least lost energy that it buys."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import FactorForm, SpectrumConfig, UniformConfig, Weighting
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape, Target
from lillama.strategy import make_plan
from tests.strategy.test_plans import candidates, models, of_factors, realised

QUICK = settings(deadline=None, max_examples=150)
TINY = [((6, 7), 1), ((5, 9), 1), ((6, 6), 2)]
# Of matrices 12 x 16 whose spectra fall like this, none is worth its whole size when so much is removed.
CONVEX = st.floats(0.45, 0.8)
RATES = st.lists(st.floats(1, 1.6), min_size=2, max_size=4)


def steep(count, rate):
    return [float(value) for value in np.exp(-rate * np.arange(count))]


def random_spectra(shape, seed, scale=6.0):
    """Any descending spectra, each with its own decay and its own size."""
    rng = np.random.default_rng(seed)
    return {
        t.name: sorted(rng.gamma(rng.uniform(0.05, 2), rng.uniform(1, scale), min(t.shape)).tolist(), reverse=True)
        for t in shape.targets
    }


def lost(shape, ranks, spectra, weighting=Weighting.relative):
    """The energy that a plan loses, counted afresh."""
    parts = {name: sum(spectra[name][rank:]) for name, rank in ranks.items()}
    if weighting is Weighting.relative:
        parts = {name: part / sum(spectra[name]) for name, part in parts.items()}
    return sum(parts.values())


def planned(shape, config, spectra):
    return make_plan(shape, config, lambda names: {name: spectra[name] for name in names})


def alike(count, out=12, inner=16):
    """A model of matrices of one shape, a block each."""
    targets = tuple(Target(f"layers.{block}.w", block, (out, inner)) for block in range(count))
    return ModelShape(sum(t.parameters for t in targets), count, targets)


@given(models(), st.floats(0.01, 0.7), st.sampled_from([1, 2, 8]), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_the_budget_of_the_whole_model_is_met_within_a_step(shape, reduction, step, k, seed):
    config = SpectrumConfig(reduction=reduction, round_to=step, k=k)
    target, lowest = int(shape.parameters * (1 - reduction)), -(-k // step) * step
    large = [t for t in shape.targets if candidates(t, k=lowest, m=1)]
    smallest = realised(shape, {t.name: lowest for t in large})
    if smallest > target:
        with pytest.raises(ConfigError, match=f"largest possible is {1 - smallest / shape.parameters:.1%}"):
            make_plan(shape, config, lambda names: pytest.fail("spectra were asked for in vain"))
        return
    plan = planned(shape, config, random_spectra(shape, seed))
    assert plan.parameters == realised(shape, plan.ranks) <= target
    assert plan.requested == pytest.approx(1 - target / shape.parameters)
    assert set(plan.ranks) <= {t.name for t in large}
    for t in large:
        if t.name in plan.ranks:
            rank = plan.ranks[t.name]
            assert of_factors(t, rank) < t.shape[0] * t.shape[1]
            assert rank % step == 0
            assert rank >= k
            following = min(of_factors(t, min(rank + step, *t.shape)), t.shape[0] * t.shape[1])
            price = t.copies * (following - of_factors(t, rank))
            assert price > target - plan.parameters, "one more step would have fitted"


@given(CONVEX, RATES)
@QUICK
def test_it_loses_no_more_than_uniform_with_as_many_parameters(reduction, rates):
    shape = alike(len(rates))
    spectra = {t.name: steep(12, rate) for t, rate in zip(shape.targets, rates, strict=True)}
    uniform = make_plan(shape, UniformConfig(reduction=reduction))
    plan = planned(shape, SpectrumConfig(parameters=str(uniform.parameters)), spectra)
    assert plan.parameters <= uniform.parameters
    assert lost(shape, plan.ranks, spectra) <= lost(shape, uniform.ranks, spectra) + 1e-12


@given(st.floats(0, 0.02), st.integers(0, 2**32 - 1), st.sampled_from(Weighting), st.sampled_from(FactorForm))
@settings(deadline=None, max_examples=60)
def test_trying_all_plans_finds_none_that_is_better(price, seed, weighting, form):
    """Matrices of several shapes, one of two experts, each at any rank or dense; the size is one that a price buys."""
    targets = tuple(Target(f"w{n}", n, size, copies) for n, (size, copies) in enumerate(TINY))
    shape = ModelShape(sum(t.parameters for t in targets), len(targets), targets).factored(form)
    spectra = random_spectra(shape, seed)
    choices = [[*candidates(t, k=1, m=1), None] for t in shape.targets]
    names = [t.name for t in targets]
    every = [
        {name: rank for name, rank in zip(names, ranks, strict=True) if rank is not None} for ranks in product(*choices)
    ]
    if weighting is Weighting.absolute:  # energies are then no shares of one
        price *= sum(map(sum, spectra.values())) / len(spectra)
    bought = min(every, key=lambda ranks: lost(shape, ranks, spectra, weighting) + price * realised(shape, ranks))
    if not bought:
        return
    config = SpectrumConfig(parameters=str(realised(shape, bought)), weighting=weighting)
    within = [ranks for ranks in every if realised(shape, ranks) <= realised(shape, bought)]
    best = min(lost(shape, ranks, spectra, weighting) for ranks in within)
    plan = planned(shape, config, spectra)
    assert lost(shape, plan.ranks, spectra, weighting) == pytest.approx(best, abs=1e-9)


@given(CONVEX, RATES)
@QUICK
def test_where_every_step_costs_the_same_it_is_the_optimum_of_any_budget(reduction, rates):
    shape = alike(len(rates))
    spectra = {t.name: steep(12, rate) for t, rate in zip(shape.targets, rates, strict=True)}
    every = [dict(zip(spectra, ranks, strict=True)) for ranks in product(range(1, 7), repeat=len(rates))]
    target = int(shape.parameters * (1 - reduction))
    best = min(lost(shape, ranks, spectra) for ranks in every if realised(shape, ranks) <= target)
    plan = planned(shape, SpectrumConfig(reduction=reduction), spectra)
    assert lost(shape, plan.ranks, spectra) <= best + 1e-12


@given(st.integers(2, 6), st.floats(0.3, 0.8), st.floats(0.5, 3), st.sampled_from([1, 2]))
@QUICK
def test_equal_spectra_give_equal_ranks_to_within_a_step(count, reduction, rate, step):
    shape = alike(count, 24, 24)
    plan = planned(
        shape,
        SpectrumConfig(reduction=reduction, round_to=step),
        {t.name: steep(24, rate) for t in shape.targets},
    )
    assert len(plan.ranks) == count
    assert max(plan.ranks.values()) - min(plan.ranks.values()) <= step


@pytest.mark.parametrize("weighting", Weighting)
def test_a_flat_spectrum_gets_more_than_a_steep_one(weighting):
    shape = alike(2, 40, 40)
    flat, sharp = [1 / 40] * 40, steep(40, 1.0)
    spectra = {"layers.0.w": [value / sum(sharp) for value in sharp], "layers.1.w": flat}
    plan = planned(shape, SpectrumConfig(reduction=0.4, weighting=weighting), spectra)
    assert plan.ranks["layers.0.w"] < plan.ranks.get("layers.1.w", 40)


@given(models(), st.integers(0, 2**32 - 1), st.integers(-8, 8))
@settings(deadline=None, max_examples=60)
def test_relative_counts_no_sizes_of_outputs(shape, seed, power):
    spectra = random_spectra(shape, seed)
    first = shape.targets[0].name
    scaled = spectra | {first: [value * 2.0**power for value in spectra[first]]}
    try:
        before, after = (planned(shape, SpectrumConfig(reduction=0.3), known) for known in (spectra, scaled))
    except ConfigError:
        return
    assert before == after


@given(CONVEX, RATES, st.floats(1, 8))
@QUICK
def test_absolute_gives_more_to_larger_outputs(reduction, rates, factor):
    shape = alike(len(rates))
    spectra = {t.name: steep(12, rate) for t, rate in zip(shape.targets, rates, strict=True)}
    first = shape.targets[0].name
    config = SpectrumConfig(reduction=reduction, weighting=Weighting.absolute)
    larger = spectra | {first: [factor * value for value in spectra[first]]}
    before, after = (planned(shape, config, known).ranks.get(first, 12) for known in (spectra, larger))
    assert before <= after


def test_without_a_word_of_outputs_nothing_is_lost():
    """Outputs that are zero have no energy to share out; the plan is still within its budget."""
    shape = alike(3)
    plan = planned(shape, SpectrumConfig(reduction=0.3), {t.name: [0.0] * 12 for t in shape.targets})
    assert plan.parameters <= 0.7 * shape.parameters
