"""Stable rank against singular values, and what it must not depend on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lillama.algebra.moments import Moment
from lillama.algebra.stable_rank import centred, of_moment, stable_rank

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def drawn(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SHAPES)
def test_it_is_what_the_singular_values_say(shape):
    values = torch.linalg.svdvals(drawn(shape))
    assert stable_rank(drawn(shape)) == pytest.approx(float((values**2).sum() / values[0] ** 2))


@given(SHAPES, st.floats(0.01, 100))
def test_it_lies_between_one_and_the_rank_whatever_the_scale(shape, scale):
    assert 1 - 1e-9 <= stable_rank(drawn(shape)) <= min(shape) + 1e-9
    assert stable_rank(scale * drawn(shape)) == pytest.approx(stable_rank(drawn(shape)))
    assert stable_rank(drawn(shape).T) == pytest.approx(stable_rank(drawn(shape)))


def test_the_extremes():
    assert stable_rank(torch.eye(7)) == pytest.approx(7)
    assert stable_rank(torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4))) == pytest.approx(1)
    assert stable_rank(torch.zeros(3, 4)) == 0


def test_a_streamed_moment_gives_that_of_the_rows_together():
    rows = drawn((90, 6)).float() + torch.tensor([5.0, 0, 0, 1, 0, 0])
    moment = Moment(6)
    for part in rows.split(17):
        moment.add(part)
    assert of_moment(moment.value) == pytest.approx(stable_rank(rows), rel=1e-5)
    without = rows - rows.mean(0)
    assert of_moment(centred(moment.value, moment.mean)) == pytest.approx(stable_rank(without), rel=1e-4)
    assert stable_rank(rows) < stable_rank(without)
