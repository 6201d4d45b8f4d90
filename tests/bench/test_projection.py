"""From speed to time, and how a model is cut to what is run."""

from types import SimpleNamespace

import pytest
from transformers import GPT2Config

from lillama.bench.built import cut
from lillama.bench.projection import project
from lillama.core.spread import ratios, shown, speeds, spread


def test_a_budget_takes_its_tokens_over_the_speed():
    projection = project(
        tokens=13_000_000, tokens_per_second=1000.0, measured_flops=7, all_flops=7, device="cuda", gpu="a GPU"
    )
    assert projection.seconds == pytest.approx(13_000)
    assert (projection.partial, projection.note) == (False, "")


def test_what_was_not_measured_is_scaled_by_operations_and_said():
    projection = project(tokens=1000, tokens_per_second=10.0, measured_flops=2, all_flops=5, device="cuda", gpu="a GPU")
    assert projection.seconds == pytest.approx(250)
    assert projection.partial
    assert projection.note.startswith("projected")


def test_a_cpu_is_never_told_as_a_gpu():
    projection = project(tokens=1, tokens_per_second=1.0, measured_flops=1, all_flops=1, device="cpu", gpu=None)
    assert projection.note == "not measured on a GPU"


def test_spreads_are_median_lowest_and_highest_round_by_round():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert ratios([2.0, 9.0], [1.0, 3.0]) == {"median": 2.5, "lowest": 2.0, "highest": 3.0}
    assert speeds(10, [1.0, 2.0])["highest"] == 10.0
    assert shown({"median": 1234.4, "lowest": 0.12345, "highest": 5}) == "1,234 (0.123 to 5)"


def test_a_cut_model_keeps_its_first_layers_under_the_familys_own_name():
    assert cut({"model_type": "gpt2", "n_layer": 12, "n_embd": 8}, GPT2Config(), 3) == {
        "model_type": "gpt2",
        "n_layer": 3,
        "n_embd": 8,
    }
    known = SimpleNamespace(attribute_map={}, num_hidden_layers=3)
    values = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "other": [1, 2]}
    assert cut(values, known, 2) == {"num_hidden_layers": 2, "layer_types": ["a", "b"], "other": [1, 2]}
