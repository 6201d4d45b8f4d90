import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.config import LearningRate
from lillama.distill.learning_rate import learning_rate


@given(st.integers(1, 300), st.floats(0, 0.9), st.sampled_from(list(LearningRate)))
def test_it_rises_to_the_peak_and_never_above(steps, warmup, shape):
    rates = [learning_rate(step, steps, peak=2.0, warmup=warmup, shape=shape) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert max(rates) == pytest.approx(2.0)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_constant_stays_and_cosine_falls_to_nearly_nothing():
    def last(shape):
        return learning_rate(99, 100, peak=1.0, warmup=0.0, shape=shape)

    assert last(LearningRate.constant) == 1.0
    assert last(LearningRate.cosine) < 0.001
    assert learning_rate(0, 100, peak=1.0, warmup=0.1, shape=LearningRate.cosine) == pytest.approx(0.1)
