"""The stage end to end at tiny shapes: every figure is there and positive, and nothing is claimed that was not run."""

from functools import partial

import pytest
import torch

from lillama.core.errors import ConfigError
from lillama.run.pipeline import run
from tests.conftest import TINY_RUN, composed, fingerprint
from tests.marks import long_unless

BENCH = (*TINY_RUN, "stages=[plan,bench]", "data.seq_len=16", "distill.batch_size=2", "bench.rounds=3")
TWO_BLOCKS = ("strategy.reduction=0.3",)  # of the tiny Llama, with these ranks


def benched(folder, *overrides):
    result = run(composed(*BENCH, *overrides), folder)
    assert result["status"] == "done"
    return result["bench"]


def smallest(values):
    """The smallest number within nested figures."""
    if isinstance(values, dict):
        return min(smallest(value) for value in values.values())
    return values


@pytest.mark.parametrize("schedule", ["joint", "blockwise"])
def test_efficiency_and_speed_are_measured_in_one_run(tmp_path, schedule):
    found = benched(tmp_path, f"distill/schedule={schedule}", *TWO_BLOCKS)
    assert found["schedule"] == schedule
    assert found["rounds"] == 3
    assert 0 < found["efficiency"]["median"] < 1.5
    assert set(found["seconds"]) == {"engine", "products", "authors", "literal"}
    assert set(found["speedup"]) == {"authors", "literal"}
    assert smallest({key: found[key] for key in ("seconds", "tokens_per_second", "speedup", "flops")}) > 0
    assert found["flops"]["recorded"] == found["flops"]["needed"]
    assert found["batch"] == {"sequences": 2, "length": 16, "tokens": 32}
    assert sum(product["count"] * product["flops"] for product in found["products"]) == found["flops"]["recorded"]
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_a_bench_on_a_cpu_never_claims_a_gpu(tmp_path):
    found = benched(tmp_path, "model.device=cpu")
    assert (found["device"], found["gpu"], found["memory"]["peak_device"]) == ("cpu", None, None)
    assert "not measured on a GPU" in found["notes"]
    assert "not measured on a GPU" in found["projection"]["note"]


def test_memory_is_that_of_the_engine_beside_the_models_size(tmp_path):
    memory = benched(tmp_path)["memory"]
    assert memory["built"] == memory["model"] == 114_288 * 4
    assert 0 < memory["factors"] < memory["model"]
    assert memory["peak_host"] >= memory["host_before"] > 0


def test_a_random_model_is_built_up_to_the_last_block_that_learns(tmp_path):
    found = benched(tmp_path, "bench=truncated", *TWO_BLOCKS)
    blocks = found["blocks"]
    assert blocks["built"] == blocks["measured"] == blocks["of_plan"] < blocks["of_model"]
    assert found["memory"]["built"] < found["memory"]["model"]
    assert any("leaves out the teacher's blocks" in note for note in found["notes"])
    assert "the literal reference was not run: bench.literal=false" in found["notes"]
    assert found["speedup"] == {}
    assert not found["projection"]["partial"]


def test_some_of_the_blocks_stand_for_all_by_counted_operations(tmp_path):
    found = benched(tmp_path, "bench=truncated", "bench.blocks=1", *TWO_BLOCKS)
    projection, speed = found["projection"], found["tokens_per_second"]["engine"]["median"]
    assert found["blocks"]["measured"] == 1 < found["blocks"]["of_plan"]
    assert projection["partial"]
    assert projection["scale"] > 1
    assert projection["seconds"] == pytest.approx(13_000_000 / speed * projection["scale"])
    assert any("of the plan's" in note for note in found["notes"])


def test_the_reference_is_for_one_stack(tmp_path):
    found = benched(tmp_path, "model=tiny_t5", "strategy.k=4")
    for reference in ("the method as its authors run it", "the literal reference"):
        assert f"{reference} was not run: it is for decoders with one stack of blocks" in found["notes"]
    assert "needed" not in found["flops"], "counted by hand for Llama-like decoders only"


@pytest.mark.parametrize(
    "options",
    long_unless(
        "distill.micro_batch=1".__eq__, ["distill.moments=int8", "distill.train=block", "distill.micro_batch=1"]
    ),
)
def test_whatever_the_engine_is_asked_for_is_measured(tmp_path, options, monkeypatch):
    # torchao compiles its step, for half a minute; tests/distill/test_teaching.py learns with what that gives.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = benched(tmp_path, options)
    assert found["flops"]["recorded"] == found["flops"]["needed"]


def test_a_low_rank_embedding_is_measured_whole_or_not_at_all(tmp_path):
    ends = ("model.targets.include=[embed_tokens,up_proj]", "strategy.k=4")
    found = benched(tmp_path / "whole", *ends)
    assert "the literal reference was not run: it knows no low-rank embedding or head" in found["notes"]
    assert found["projection"]["scale"] == 1
    with pytest.raises(ConfigError, match=r"bench\.blocks"):
        benched(tmp_path / "part", *ends, "bench.blocks=1")


def test_other_runs_do_not_depend_on_the_bench():
    assert fingerprint(composed(*TINY_RUN)) == fingerprint(composed(*TINY_RUN, "bench=truncated"))
    assert fingerprint(composed(*BENCH)) != fingerprint(composed(*BENCH, "bench.blocks=1"))


@pytest.mark.parametrize("key", ["bench.rounds=0", "bench.warmup=-1", "bench.seconds=0", "bench.blocks=0"])
def test_settings_out_of_range_are_refused_by_name(key):
    with pytest.raises(ConfigError, match=key.partition("=")[0].replace(".", r"\.")):
        composed(key)
