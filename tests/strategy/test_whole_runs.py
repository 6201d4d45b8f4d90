"""Runs of the strategies beyond the paper's, on a random model: what a plan from spectra needs, shares and keeps."""

import json
import shutil

import pytest

import lillama.init.feature
import lillama.run.supply
from lillama.core.outputs import Outputs
from lillama.core.results import read_json
from lillama.distill.parallel import Team
from lillama.model.source import ModelSource
from lillama.run.job import Job
from lillama.run.pipeline import run
from lillama.run.planning import agreed_plan
from lillama.run.record import Record
from lillama.run.resume import Resume
from lillama.run.run import Run
from lillama.strategy.plan import RankPlan
from tests.conftest import TINY_RUN, composed, fingerprint

STAGES = "stages=[plan,init,distill]"
ENDS = ("model.targets.include=['*']",)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The words of a run of a few steps on a text of a few pages."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text(json.dumps({"text": " ".join(f"{n} times {n} is {n * n}." for n in range(200))}) + "\n")
    words = [word for word in TINY_RUN if not word.startswith(("strategy", "logger"))]
    return (*words, "data=local", f"data.path={file}", "data.tokens=512", "logger=none", STAGES)


@pytest.fixture
def spectrum(short, tmp_path):
    """The same by spectra, with a cache of its own."""
    return (*short, "strategy=spectrum", f"cache_dir={tmp_path / 'cache'}")


@pytest.fixture
def counted(monkeypatch):
    """The names whose moments were taken, in order."""
    names, take = [], lillama.init.feature.input_moments

    def moments(model, group, *rest, **options):
        names.extend(group)
        return take(model, group, *rest, **options)

    monkeypatch.setattr(lillama.init.feature, "input_moments", moments)
    return names


@pytest.mark.parametrize("strategy", ["middle_out", "mixed"])
def test_an_order_of_layers_runs_whole(strategy, cli, short, tmp_path):
    words = (f"strategy={strategy}", "strategy.k=8", "strategy.m=4", "strategy.reduction=0.1")
    status, _, err = cli(*short, *words, f"hydra.run.dir={tmp_path}")
    assert status == 0, err
    assert read_json(tmp_path / "results.json")["tokens"] == 512
    first = {"middle_out": 1, "mixed": 0}[strategy]
    assert first in read_json(tmp_path / "plan.json")["block_indices"]


def test_a_plan_alone_is_that_of_the_whole_run_and_no_moment_is_taken_twice(cli, spectrum, tmp_path, counted):
    status, out, err = cli(*spectrum, "stages=[plan]", f"hydra.run.dir={tmp_path / 'plan'}")
    assert status == 0, err
    assert "| model.layers |" in out, "the plan is shown"
    assert len(counted) == len(set(counted)) == 28
    assert "data" in read_json(tmp_path / "plan" / "results.json")["seconds"]
    status, _, err = cli(*spectrum, f"hydra.run.dir={tmp_path / 'whole'}")
    assert status == 0, err
    words = ("strategy.weighting=absolute", "strategy.reduction=0.3")
    status, _, err = cli(*spectrum, *words, f"hydra.run.dir={tmp_path / 'other'}")
    assert status == 0, err
    assert len(counted) == 28, "plan, start and the next cell of a sweep share them"
    plan, whole, other = (read_json(tmp_path / name / "plan.json") for name in ("plan", "whole", "other"))
    assert plan == whole
    assert plan["ranks"] != other["ranks"]
    assert plan["reduction"]["realised"] >= 0.2


@pytest.mark.parametrize("words", [("init=svd",), ("model=tiny_mixtral",), ENDS])
def test_it_needs_no_feature_start_and_knows_experts_and_a_tied_embedding(words, cli, spectrum, tmp_path, counted):
    status, _, err = cli(*spectrum, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    assert len(counted) == len(set(counted))
    assert ("model.embed_tokens" in counted) == (words == ENDS)
    assert read_json(tmp_path / "run" / "results.json")["reduction"]["realised"] >= 0.2


def test_a_request_out_of_reach_and_bad_data_are_told_before_a_model_is_loaded(cli, spectrum, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    for number, (word, said) in enumerate([("strategy.k=30", "largest possible"), ("data.tokens=100000000", "only")]):
        status, _, err = cli(*spectrum, "stages=[plan]", word, f"hydra.run.dir={tmp_path / str(number)}")
        assert status == 2
        assert said in err


def test_a_run_goes_on_by_the_plan_that_it_began_with(spectrum, tmp_path, monkeypatch):
    """Whatever became of the cache, of plan.json, of the numbers that another machine would find."""
    config = composed(*spectrum, "snapshot.every_steps=1")
    log_step = Record.log_step

    def killed(record, tokens, metrics):
        log_step(record, tokens, metrics)
        if tokens >= 256:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "log_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    began = read_json(tmp_path / "run" / "plan.json")
    assert list((tmp_path / "run" / "snapshots").glob("step-*"))
    (tmp_path / "run" / "plan.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(lillama.run.supply, "plan_spectra", lambda *_, **__: pytest.fail("planned anew"))
    assert run(config, tmp_path / "run")["status"] == "done"
    assert read_json(tmp_path / "run" / "plan.json") == began


def test_a_process_that_keeps_no_records_takes_the_plan_that_it_is_told(spectrum, tmp_path, monkeypatch):
    plan = RankPlan({"w": 3}, 100, 80, (0,), 0.2)
    monkeypatch.setattr(
        Team, "broadcast_object", lambda self, value: plan if value is None else pytest.fail("said something")
    )
    asked, record = Run.of(composed(*spectrum)), Record(Outputs(tmp_path), None)
    resume = Resume.of(asked, tmp_path, "", background=False)
    assert agreed_plan(Job(asked, record, None, Team(1, 2), None, resume)) is plan


def test_a_plan_is_read_as_it_was_written():
    plan = RankPlan({"b": 3, "a": 4}, 100, 80, (-1, 2), 0.25)
    assert RankPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def test_what_a_plan_alone_depends_on(short, tmp_path):
    """On the text where it comes from spectra, and only there."""

    def hashed(strategy, text):
        file = tmp_path / "text.jsonl"
        file.write_text(json.dumps({"text": text}) + "\n")
        return fingerprint(composed(*short, strategy, "stages=[plan]", f"data.path={file}"))

    assert hashed("strategy=spectrum", "one") != hashed("strategy=spectrum", "two")
    assert hashed("strategy=uniform", "one") == hashed("strategy=uniform", "two")
