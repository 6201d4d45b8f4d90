"""What a plan is expected to cost, before anything is cut."""

import math
from dataclasses import replace

import pytest

from lillama.config import FactorForm, KfacRanksConfig
from lillama.model.targets import ModelShape, Target
from lillama.strategy.forecast import draw_forecast, forecast, measured_over_predicted, predicted_loss_rise

TARGETS = tuple(Target(f"layers.{block}.{name}", block, (40, 24), 1) for block in range(3) for name in ("up", "down"))
SHAPE = ModelShape(sum(target.parameters for target in TARGETS) + 500, 3, TARGETS, every=TARGETS)
VALUES = {target.name: [2.0**-place / (1 + target.block) for place in range(24)] for target in TARGETS}
LOSS = 2.5


def test_half_of_what_the_ranks_leave_out_is_the_predicted_rise():
    name = TARGETS[0].name
    assert predicted_loss_rise({name: 24}, VALUES) == 0
    assert predicted_loss_rise({name: 0}, VALUES) == pytest.approx(0.5 * sum(VALUES[name]))
    both = {TARGETS[0].name: 3, TARGETS[5].name: 7}
    assert predicted_loss_rise(both, VALUES) == pytest.approx(
        0.5 * (sum(VALUES[TARGETS[0].name][3:]) + sum(VALUES[TARGETS[5].name][7:]))
    )


def test_it_costs_more_the_smaller_and_less_with_pivoted_factors():
    found = forecast(SHAPE, KfacRanksConfig(), VALUES, loss=LOSS, tokens=32768)
    rises = {(point["factors"], point["reduction"]): point["predicted_loss_rise"] for point in found["points"]}
    for form in FactorForm:
        own = [rise for (name, _), rise in rises.items() if name == form.name]
        assert own == sorted(own)
        assert len(own) >= 3
    assert all(rises["pivoted", reduction] <= rise for (form, reduction), rise in rises.items() if form == "plain")
    assert found["dense"] == {"loss": LOSS, "perplexity": math.exp(LOSS)}
    for point in found["points"]:
        for end, ratio in found["measured_over_predicted"].items():
            expected = LOSS + ratio * point["predicted_loss_rise"]
            assert math.log(point["perplexity"][end]) == pytest.approx(expected)


def test_fewer_tokens_predict_too_little_by_more():
    few, many = (measured_over_predicted(tokens) for tokens in (4096, 1_000_000))
    for ratio in (few, many):
        assert 1 < ratio.low < ratio.middle < ratio.high
    assert few.low > many.low
    assert few.middle > many.middle
    told = forecast(SHAPE, KfacRanksConfig(), VALUES, loss=LOSS, tokens=4096)
    assert told["tokens"] == 4096
    assert told["measured_over_predicted"]["middle"] == few.middle


def test_a_size_that_is_out_of_reach_has_no_point(tmp_path):
    most = replace(SHAPE, parameters=SHAPE.parameters * 5)  # a fifth of it are matrices
    found = forecast(most, KfacRanksConfig(), VALUES, loss=LOSS, tokens=32768)
    assert {point["reduction"] for point in found["points"]} == {0.1}
    draw_forecast(forecast(SHAPE, KfacRanksConfig(), VALUES, loss=LOSS, tokens=9), tmp_path / "chart.png", title="it")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
