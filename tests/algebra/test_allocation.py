"""Sharing out one budget: within it, complete, and as good as trying everything."""

from itertools import accumulate, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.allocation import allocate

QUICK = settings(deadline=None, max_examples=150)


@st.composite
def things(draw, most=4, sizes=5):
    """Costs that rise and losses that fall, of a few things."""
    costs, losses = [], []
    for _ in range(draw(st.integers(1, most))):
        count = draw(st.integers(1, sizes))
        rises = draw(st.lists(st.integers(1, 20), min_size=count, max_size=count))
        falls = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        costs.append(list(accumulate(rises)))
        losses.append([sum(falls[size:]) for size in range(count)])
    return costs, losses


def total(values, sizes):
    return sum(own[size] for own, size in zip(values, sizes, strict=True))


def every_choice(costs):
    return product(*(range(len(own)) for own in costs))


def largest_step(costs, losses):
    """The most that one step along any thing's convex hull saves."""
    most = 0.0
    for cost, loss in zip(costs, losses, strict=True):
        points = list(zip(cost, loss, strict=True))
        low = [p for p in points if not any(_above(p, a, b) for a in points for b in points if a[0] < p[0] < b[0])]
        most = max([most, *(one[1] - other[1] for one, other in pairwise(low))])
    return most


def _above(point, left, right):
    share = (point[0] - left[0]) / (right[0] - left[0])
    return point[1] > left[1] + share * (right[1] - left[1]) + 1e-12


@given(things(), st.floats(0, 1))
@QUICK
def test_the_budget_is_kept_and_nothing_more_fits(given_things, share):
    costs, losses = given_things
    least, most = sum(own[0] for own in costs), sum(own[-1] for own in costs)
    budget = least + int(share * (most - least))
    sizes = allocate(costs=costs, losses=losses, budget=budget)
    left = budget - total(costs, sizes)
    assert left >= 0
    for own, size in zip(costs, sizes, strict=True):
        assert size + 1 == len(own) or own[size + 1] - own[size] > left


@given(things(), st.floats(0, 1))
@QUICK
def test_it_is_above_the_optimum_by_less_than_one_step(given_things, share):
    costs, losses = given_things
    least, most = sum(own[0] for own in costs), sum(own[-1] for own in costs)
    budget = least + int(share * (most - least))
    best = min(total(losses, sizes) for sizes in every_choice(costs) if total(costs, sizes) <= budget)
    found = total(losses, allocate(costs=costs, losses=losses, budget=budget))
    assert best - 1e-9 <= found <= best + largest_step(costs, losses) + 1e-9


@given(things(), st.floats(0, 0.5))
@QUICK
def test_what_one_price_chooses_is_found_with_the_budget_that_it_spends(given_things, price):
    """The choice that a Lagrange multiplier makes is the optimum of its own budget."""
    costs, losses = given_things
    pairs = list(zip(costs, losses, strict=True))
    chosen = [min(range(len(c)), key=lambda size, c=c, f=f: f[size] + price * c[size]) for c, f in pairs]
    found = allocate(costs=costs, losses=losses, budget=total(costs, chosen))
    assert total(losses, found) == pytest.approx(total(losses, chosen), abs=1e-9)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=4), st.floats(0, 1))
@QUICK
def test_steps_of_one_price_that_save_less_and_less_are_shared_out_at_best(savings, share):
    losses = [[sum(sorted(own)[:rest]) for rest in range(len(own), -1, -1)] for own in savings]
    costs = [[7 * size for size in range(len(own))] for own in losses]
    budget = int(share * sum(own[-1] for own in costs))
    best = min(total(losses, sizes) for sizes in every_choice(costs) if total(costs, sizes) <= budget)
    found = allocate(costs=costs, losses=losses, budget=budget)
    assert total(losses, found) == pytest.approx(best, abs=1e-9)


def test_a_step_past_a_poor_one_is_seen():
    """The second size saves little, the third much: both are passed at once."""
    assert allocate(costs=[[0, 1, 2], [0, 1, 2]], losses=[[1.0, 0.9, 0.0], [1.0, 0.6, 0.3]], budget=2) == [2, 0]


def test_things_that_are_alike_rise_together():
    costs, losses = [[0, 1, 2, 3]] * 3, [[3.0, 2.0, 1.0, 0.0]] * 3
    assert allocate(costs=costs, losses=losses, budget=6) == [2, 2, 2]


def test_a_budget_below_the_smallest_sizes_is_refused():
    with pytest.raises(ValueError, match="cost 3 more than the budget of 4"):
        allocate(costs=[[3, 5], [4, 5]], losses=[[1.0, 0.0], [1.0, 0.0]], budget=4)
