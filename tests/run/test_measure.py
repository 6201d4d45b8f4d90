"""The stages after the making, on the command line: a run that compresses, a checkpoint by itself, a run cut short."""

import math

import lm_eval
import pytest

import lillama.evaluate.domains
import lillama.run.distilling
from lillama.core.results import read_json
from lillama.model.checkpoint import load_checkpoint
from lillama.model.source import ModelSource
from tests.conftest import TINY_RUN
from tests.evaluate.tasks_data import fill, rows, write

MEASURED = (
    "evaluate.zero_shot.tasks=[piqa,boolq]",
    "evaluate.zero_shot.metrics={}",
    "evaluate.throughput.lengths=[8,16]",
    "evaluate.throughput.decode_batches=[1]",
    "evaluate.throughput.prompt=8",
    "evaluate.throughput.new_tokens=3",
    "evaluate.throughput.rounds=1",
    "evaluate.samples.prompts=[Rain,Snow]",
    "evaluate.samples.max_new_tokens=4",
    "evaluate.stable_rank.tokens=128",
    "evaluate.stable_rank.seq_len=64",
)
STAGES = "stages=[plan,init,distill,perplexity,zero_shot,throughput,samples,stable_rank]"


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A tiny run that measures everything; its scores are kept in a cache of its own."""
    monkeypatch.setenv("LILLAMA_CACHE", str(tmp_path / "cache"))
    data = fill(tmp_path / "tasks")
    return (*TINY_RUN, *MEASURED, f"evaluate.tasks_dir={data}")


@pytest.fixture
def asked(monkeypatch):
    """The tasks that the harness is asked, in their order."""
    names, plain = [], lm_eval.evaluate

    def evaluate(lm, task_dict, **options):
        names.extend(task_dict["tasks"])
        return plain(lm, task_dict, **options)

    monkeypatch.setattr(lm_eval, "evaluate", evaluate)
    return names


def scores(figures):
    return {name: (score["score"], score["stderr"]) for name, score in figures["tasks"].items()}


def test_a_run_measures_the_dense_model_and_the_compressed_one(words, cli, tmp_path, asked):
    status, out, err = cli(*words, STAGES, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    result = read_json(tmp_path / "run" / "results.json")
    assert list(result["measured"]) == ["throughput", "zero_shot", "samples", "stable_rank"]
    for stage, found in result["measured"].items():
        assert set(found) - {"ratios"} == {"dense", "compressed"}, stage
    for heading in ("zero shot", "throughput", "samples", "stable rank"):
        assert f"\n{heading}\n" in out
    assert (tmp_path / "run" / "stable_rank.png").read_bytes().startswith(b"\x89PNG")
    found = result["measured"]["zero_shot"]
    assert set(found["compressed"]["recovery"]) <= {"piqa", "boolq", "mean"}
    assert result["bits_per_byte"].keys() == result["perplexity"].keys()
    assert asked == ["piqa", "boolq"] * 2

    # The checkpoint by itself: the same figures, and no task is asked again.
    alone = [word for word in words if not word.startswith(("model=", "strategy"))]
    checkpoint = tmp_path / "run" / "checkpoint"
    own = (f"model.path={checkpoint}", "model.name=own", "stages=[perplexity,zero_shot,samples]", "logger=none")
    status, out, err = cli("model=hub", *alone, *own, f"hydra.run.dir={tmp_path / 'alone'}")
    assert status == 0, err
    again = read_json(tmp_path / "alone" / "results.json")
    assert asked == ["piqa", "boolq"] * 2
    assert again["perplexity"] == {"end": pytest.approx(result["perplexity"]["end"], rel=1e-6)}
    assert scores(again["measured"]["zero_shot"]["compressed"]) == scores(found["compressed"])
    assert again["measured"]["samples"]["compressed"] == result["measured"]["samples"]["compressed"]
    assert again["parameters"] == {"compressed": result["parameters"]["compressed"]}
    assert "recovery" not in again["measured"]["zero_shot"]["compressed"]


def test_a_checkpoint_is_measured_beside_a_baseline(words, cli, tmp_path, tiny_model, tokenizer):
    tiny_model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    common = [word for word in words if not word.startswith("model=")]
    dense = ("model=hub", f"model.path={tmp_path / 'dense'}", "logger=none")
    assert cli(*common, *dense, "stages=[plan,init]", f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    own = (f"model.path={tmp_path / 'run' / 'checkpoint'}", f"evaluate.baseline={tmp_path / 'dense'}")
    stages = "stages=[perplexity,zero_shot,throughput]"
    status, _, err = cli("model=hub", *common, *own, "logger=none", stages, f"hydra.run.dir={tmp_path / 'both'}")
    assert status == 0, err
    result = read_json(tmp_path / "both" / "results.json")
    assert set(result["perplexity"]) == {"dense", "end"}
    assert result["perplexity"]["dense"] < result["perplexity"]["end"]
    assert set(result["measured"]["throughput"]) == {"dense", "compressed", "ratios"}
    assert "mean" in result["measured"]["zero_shot"]["compressed"]["recovery"]


def test_a_sweep_measures_the_domains_of_its_dense_model_once(words, cli, tmp_path, monkeypatch):
    measured, plain = [], lillama.evaluate.domains.text_perplexity

    def perplexity(model, *args, **options):
        measured.append(model)
        return plain(model, *args, **options)

    monkeypatch.setattr(lillama.evaluate.domains, "text_perplexity", perplexity)
    few = (*words, "strategy.reduction=0.1,0.2", "evaluate/domains=stdlib", "stages=[plan,init,domains]")
    short = [f"evaluate.domains.texts.{name}.max_tokens=64" for name in ("documentation", "code")]
    status, _, err = cli("-m", *few, *short, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert status == 0, err
    results = [read_json(file) for file in sorted((tmp_path / "sweep").glob("*/results.json"))]
    dense, again = (result["measured"]["domains"]["dense"] for result in results)
    assert dense == again
    for result in results:
        texts = result["measured"]["domains"]
        rises = [math.log(texts["compressed"][name]["perplexity"] / dense[name]["perplexity"]) for name in dense]
        assert result["loss_rise"]["measured"] == pytest.approx(sum(rises) / 2)
    assert len(measured) == 2 + 2 * 2, "two texts of one dense model and of two compressed ones"


def test_speed_needs_no_weights(words, cli, tmp_path):
    status, _, err = cli(*words, "stages=[plan,throughput]", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    result = read_json(tmp_path / "run" / "results.json")
    found = result["measured"]["throughput"]
    weights = {role: found[role]["memory"]["weights"] / 4 for role in ("dense", "compressed")}
    for role, count in weights.items():
        assert count == pytest.approx(result["parameters"][role], rel=0.01)  # and a few buffers


def test_a_run_cut_short_in_a_task_learns_and_asks_nothing_twice(words, cli, tmp_path, asked, monkeypatch):
    stages = "stages=[plan,init,distill,zero_shot]"
    assert cli(*words, stages, "cache_dir=" + str(tmp_path / "other"), f"hydra.run.dir={tmp_path / 'whole'}")[0] == 0
    whole = read_json(tmp_path / "whole" / "results.json")
    asked.clear()
    plain = lm_eval.evaluate

    def evaluate(lm, task_dict, **options):
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(lm, task_dict, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lm_eval, "evaluate", evaluate)
        assert cli(*words, stages, f"hydra.run.dir={tmp_path / 'run'}")[0] == 1
    cut = read_json(tmp_path / "run" / "results.json")
    assert cut["status"] == "interrupted"
    assert list(cut["measured"]["zero_shot"]["compressed"]["tasks"]) == ["piqa"]

    steps = []
    monkeypatch.setattr(lillama.run.distilling, "step_metrics", lambda progress: steps.append(progress) or {})
    assert cli(*words, stages, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    assert not steps, "the distillation was made again"
    assert asked == ["piqa", "boolq", "piqa", "boolq"]
    result = read_json(tmp_path / "run" / "results.json")
    for role in ("dense", "compressed"):
        assert scores(result["measured"]["zero_shot"][role]) == scores(whole["measured"]["zero_shot"][role])
    assert load_checkpoint(tmp_path / "run" / "checkpoint") is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluate.zero_shot.tasks=[piqua]", "knows no such task"),
        ("evaluate.tasks_dir=/nowhere", "no such folder"),
        ("evaluate.samples.chat_template=true", "chat_template"),
        ("evaluate.baseline=/nowhere/model", "no such file or folder"),
        ("stages=[wer]", "evaluate.wer.path=None"),
    ],
)
def test_a_wrong_request_is_one_line_before_a_model_is_loaded(words, cli, tmp_path, monkeypatch, *, change, said):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    stages = "stages=[zero_shot,samples]"
    status, _, err = cli(*words, stages, change, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_other_questions_are_another_run(words, cli, tmp_path):
    assert cli(*words, "stages=[zero_shot]", f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    write(tmp_path / "tasks" / "piqa" / "validation.jsonl", rows("piqa", 6, seed=1))
    status, _, err = cli(*words, "stages=[zero_shot]", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert "holds another run" in err
