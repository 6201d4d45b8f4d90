"""Stable ranks of models, against the singular values of what hooks see."""

import pytest
import torch

from lillama.algebra import moments
from lillama.algebra.stable_rank import stable_rank
from lillama.config import StableRankConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate import stable_rank as stage
from lillama.evaluate.stable_rank import draw_stable_ranks, stable_ranks
from lillama.model.student import random_student
from tests.families import tiny

IDS = torch.randint(4, 60, (150,), generator=torch.Generator().manual_seed(0))
CONFIG = StableRankConfig(tokens=128, seq_len=32, batch_size=3)


def seen(model, name: str) -> torch.Tensor:
    """What a module puts out on the configured tokens [128, out]."""
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(input_ids=IDS[:128].view(4, 32), use_cache=False)
    hook.remove()
    return found[0].reshape(128, -1)


def test_a_matrix_its_outputs_and_a_block(tiny_model):
    found = stable_ranks(tiny_model, IDS, CONFIG)
    name = "model.layers.2.mlp.up_proj"
    ranks, rows = found["ranks"][name], seen(tiny_model, name)
    assert found["tokens"] == 128
    assert ranks["weight"] == pytest.approx(stable_rank(tiny_model.get_submodule(name).weight))
    assert ranks["outputs"] == pytest.approx(stable_rank(rows), rel=1e-4)
    assert ranks["outputs_centred"] == pytest.approx(stable_rank(rows - rows.mean(0)), rel=1e-3)
    block, rows = found["ranks"]["model.layers.2"], seen(tiny_model, "model.layers.2")
    assert block["weight"] is None
    assert block["outputs"] == pytest.approx(stable_rank(rows), rel=1e-4)
    own = [found["ranks"][f"model.layers.{index}.mlp.up_proj"]["outputs"] for index in range(4)]
    assert found["mean"]["mlp.up_proj"]["outputs"] == pytest.approx(sum(own) / 4)
    assert list(found["mean"]) == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "layer_activation",
    ]


def test_a_low_rank_matrix_is_one_matrix(tiny_model):
    name = "model.layers.1.mlp.down_proj"
    dense = stable_ranks(tiny_model, IDS, CONFIG)
    small = random_student(tiny_model, {name: 3}).settle()
    found = stable_ranks(small, IDS, CONFIG)
    assert found["ranks"].keys() == dense["ranks"].keys()
    pair = small.get_submodule(name)
    assert found["ranks"][name]["weight"] == pytest.approx(stable_rank(pair.A.weight @ pair.B.weight), rel=1e-4)
    assert found["ranks"][name]["outputs"] <= 3


def test_passes_do_not_change_what_is_found(tiny_model, monkeypatch):
    whole = stable_ranks(tiny_model, IDS, CONFIG)
    monkeypatch.setattr(stage, "MOMENT_BYTES", moments.moment_bytes(128))
    assert stable_ranks(tiny_model, IDS, CONFIG) == whole


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "mamba", "t5", "bart", "falcon"])
def test_every_kind_of_model(family):
    found = stable_ranks(tiny(family).eval(), IDS, CONFIG)
    for name, ranks in found["ranks"].items():
        for key, value in ranks.items():
            assert value is None or 1 - 1e-6 <= value <= 128, (name, key)
    assert any(ranks["outputs"] for ranks in found["ranks"].values())
    outside = [name for name, ranks in found["ranks"].items() if ranks["outputs"] is None]
    assert all(".experts." in name or name.endswith("dt_proj") for name in outside), outside


def test_experts_are_averaged_dense_or_low_rank():
    model = tiny("mixtral").eval()
    name = "model.layers.0.mlp.experts.down_proj"
    dense = stable_ranks(model, IDS, CONFIG)["ranks"][name]
    weights = model.get_submodule("model.layers.0.mlp.experts").down_proj
    assert dense["weight"] == pytest.approx(sum(map(stable_rank, weights)) / len(weights))
    small = random_student(model, {name: 2}).settle()
    assert 1 <= stable_ranks(small, IDS, CONFIG)["ranks"][name]["weight"] <= 2


def test_what_cannot_be_measured_is_said(tiny_model):
    with pytest.raises(ConfigError, match=r"seq_len=512.*no whole sequence"):
        stable_ranks(tiny_model, IDS, StableRankConfig(tokens=128, seq_len=512))
    tiny_model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        stable_ranks(tiny_model, IDS, CONFIG)


def test_the_chart_has_a_panel_a_model(tiny_model, tmp_path):
    found = stable_ranks(tiny_model, IDS, CONFIG)
    draw_stable_ranks({"dense": found, "compressed": found}, tmp_path / "chart.png", title="tiny")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
