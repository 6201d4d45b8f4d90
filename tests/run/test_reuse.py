"""A distilled model that is kept by content: taken for every run that would make the same one, and for no other."""

import shutil
import time
from pathlib import Path

import pytest
import torch

import lillama.run.pipeline
from lillama.core.cache import entries
from lillama.core.results import read_json
from lillama.distill import snapshot
from lillama.run.pipeline import run
from lillama.run.record import Record
from lillama.run.reuse import Kept
from lillama.run.run import Run
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN, composed
from tests.forks import status, team
from tests.run.test_tuning import TUNED, WHOLE, cut_after

WORDS = (*TINY_RUN, "init=svd", "evaluate.every_tokens=512", "reuse=true")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What was said of a run that has left its model."""
    folder = tmp_path_factory.mktemp("made")
    words = (*WORDS, f"cache_dir={folder / 'cache'}")
    run(composed(*words), folder / "first")
    return words


@pytest.fixture
def words(tmp_path):
    return (*WORDS, f"cache_dir={tmp_path / 'cache'}")


@pytest.fixture
def first(made, tmp_path):
    """The folder of that run and its cache, copied for one test; what its result says."""
    shutil.copytree(cache_of(made).parent, tmp_path, dirs_exist_ok=True)
    return read_json(tmp_path / "first" / "results.json")


def cache_of(words):
    return Path(words[-1].partition("=")[2])


def models(tmp_path):
    return entries(tmp_path / "cache", ["models"])


def no_learning(monkeypatch):
    monkeypatch.setattr("lillama.distill.update.TrainStep.step", lambda *_, **__: pytest.fail("it learns again"))
    monkeypatch.setattr("lillama.distill.learner.BlockLearner.update", lambda *_: pytest.fail("it learns again"))


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("distill/schedule=blockwise",), marks=pytest.mark.long),
        pytest.param(("distill=authors_code",), marks=pytest.mark.long),
        ("factors=pivoted",),
    ],
    ids=str,
)
def test_another_run_of_the_same_model_is_bit_for_bit_the_same_without_learning(
    words, more, request, tmp_path, monkeypatch
):
    run(composed(*words, *more, "name=first"), tmp_path / "first") if more else request.getfixturevalue("first")
    no_learning(monkeypatch)
    run(composed(*words, *more, "name=second"), tmp_path / "second")
    made, taken = (read_json(tmp_path / name / "results.json") for name in ("first", "second"))
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    for key in ("curve", "perplexity", "tokens", "parameters"):
        assert taken[key] == made[key]
    assert (tmp_path / "second" / "curve.csv").read_text() == (tmp_path / "first" / "curve.csv").read_text()
    assert taken["provenance"]["distilled_by"]["started"] == made["provenance"]["started"]
    assert "distilled_by" not in made["provenance"]


def test_the_seconds_are_those_of_the_making(words, tmp_path, monkeypatch):
    """So that a table of times, Table 9's, may share its models: the making is told as a day here, the rest is not."""
    day, said = 86_400.0, Record.note
    with monkeypatch.context() as patch:
        patch.setattr(Record, "note", lambda record: said(record) | {"seconds": {"distill": day}})
        run(composed(*words), tmp_path / "first")
    no_learning(monkeypatch)
    taken = run(composed(*words, "name=other"), tmp_path / "second")
    assert day <= taken["seconds"]["distill"] < 2 * day


def test_keeping_it_is_no_time_of_the_making(words, tmp_path, monkeypatch):
    keep, clock, hour = Kept.keep, time.perf_counter, 3600.0

    def slowly(*given):
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + hour)
        keep(*given)

    monkeypatch.setattr(Kept, "keep", slowly)
    made = run(composed(*words, "save_checkpoint=false"), tmp_path / "first")
    assert len(models(tmp_path)) == 1
    assert made["seconds"]["distill"] < hour <= made["seconds"]["save"]


def test_a_run_that_measures_more_takes_it_too(words, first, tmp_path, monkeypatch):
    no_learning(monkeypatch)
    more = ("stages=[plan,init,distill,perplexity,samples]", "evaluate.samples.max_new_tokens=4")
    taken = run(composed(*words, *more), tmp_path / "second")
    assert set(taken["measured"]["samples"]) == {"dense", "compressed"}


def test_the_papers_tables_share_their_models(tmp_path, monkeypatch):
    """Bottom of Table 10 is the 20% of Table 11, and one loss of Table 8."""
    common = ("model=tiny_random", "stages=[plan,init,distill,perplexity]", "reuse=true")
    place = f"cache_dir={tmp_path / 'cache'}"
    run(composed("experiments=tiny/table10_strategies", "strategy=bottom", *common, place), tmp_path / "table10")
    no_learning(monkeypatch)
    for name, cell in (
        ("table11_ratios", ("strategy.reduction=0.2",)),
        ("table08_losses", ("loss=teacher_student", "init=feature")),
        ("open_inits", ("init=feature",)),
    ):
        run(composed(f"experiments=tiny/{name}", *cell, *common, place), tmp_path / name)


def test_the_loggers_hear_of_its_curve(words, first, tmp_path):
    run(composed(*words), tmp_path / "second")
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("first", "second")]
    curves = [[row for row in found if ",perplexity," in row] for found in rows]
    assert curves[0] == curves[1] != []


@pytest.mark.parametrize(
    "other", ["loss=student", "seed=1", "distill.lr=1e-3", "strategy.k=10", "init=random", "data.tokens=512"]
)
def test_it_is_not_taken_for_another_model(made, other):
    assert Kept(Run.of(composed(*made, other))).find() is None


@pytest.mark.parametrize(
    "same",
    ["name=x", "stages=[plan,init,distill,perplexity,zero_shot]", "save_checkpoint=false", "distill.merge=false"],
)
def test_it_is_the_same_model_whatever_is_measured_of_it(made, same):
    assert Kept(Run.of(composed(*made, same))).find() is not None


def test_without_the_option_nothing_is_kept_and_nothing_is_taken(words, made, tmp_path):
    off = (*words, "reuse=false")
    run(composed(*off), tmp_path / "first")
    assert models(tmp_path) == []
    shutil.copytree(cache_of(made), tmp_path / "cache", dirs_exist_ok=True)
    assert len(models(tmp_path)) == 1
    assert "distilled_by" not in run(composed(*off), tmp_path / "third")["provenance"]


def test_what_is_kept_is_the_weights_without_moments(first, tmp_path):
    (entry,) = models(tmp_path)
    factors = sum(v.numel() for name, v in weights(tmp_path / "first").items() if ".A." in name or ".B." in name)
    assert 4 * factors <= entry.size < 8 * factors + 200_000
    assert first["status"] == "done"


def test_a_damaged_one_is_made_anew(words, first, tmp_path, caplog):
    (entry,) = models(tmp_path)
    part = next(entry.path.rglob("block_*.pt"))
    part.write_bytes(part.read_bytes()[:-7])
    made = run(composed(*words), tmp_path / "second")
    assert "is damaged" in caplog.text
    assert "distilled_by" not in made["provenance"]
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))


@pytest.mark.parametrize("how", ["another model's", "resealed as a snapshot is"])
def test_one_that_was_not_kept_under_its_key_is_made_anew(made, how, tmp_path, monkeypatch, caplog):
    words = (*made, f"cache_dir={tmp_path / 'cache'}")
    kept = Kept(Run.of(composed(*words)))
    cache = kept._cache.root
    shutil.copytree(cache_of(made), cache)
    (entry,) = entries(cache, ["models"])
    if how == "another model's":
        kept = Kept(Run.of(composed(*words, "seed=1")))
        entry.path.rename(entry.path.with_name(kept._key))
    else:
        part = next(entry.path.rglob("block_*.pt"))
        torch.save(torch.load(part) | {"poison": 1}, part)
        manifest = part.with_name(snapshot.MANIFEST)
        snapshot._seal(part.parent, read_json(manifest)["manifest"])
        assert snapshot.Snapshots(entry.path, kept._key, composed(*words).snapshot).newest() is not None
    assert kept.find() is None
    assert "is damaged" in caplog.text
    assert entries(cache, ["models"]) == []


def test_a_cache_that_takes_nothing_costs_a_warning_only(words, tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").write_text("a file is in the way")
    assert run(composed(*words), tmp_path / "first")["status"] == "done"
    assert "is not kept for other runs" in caplog.text


def test_a_run_that_goes_on_from_its_own_snapshot_keeps_the_model_too(words, tmp_path, monkeypatch):
    saving = (*words, "snapshot.every_steps=1", "distill.batch_size=4")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lillama.run.pipeline, "finish", interrupted)
        patched.setattr("lillama.run.reuse.Kept.keep", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run(composed(*saving), tmp_path / "first")
    assert run(composed(*saving), tmp_path / "first")["status"] == "done"
    assert len(models(tmp_path)) == 1
    assert "distilled_by" in run(composed(*words, "distill.batch_size=4"), tmp_path / "second")["provenance"]


@pytest.mark.parametrize("schedule", ["joint", pytest.param("blockwise", marks=pytest.mark.long)])
def test_a_fine_tuning_of_it_that_is_killed_goes_on(schedule, words, tmp_path, monkeypatch):
    tuned = (*words, f"distill/schedule={schedule}", WHOLE, "snapshot.every_steps=2", *TUNED)
    made = run(composed(*tuned), tmp_path / "first")
    no_learning(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_after(patch, 3)
        run(composed(*tuned), tmp_path / "second")
    taken = run(composed(*tuned), tmp_path / "second")
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert taken["provenance"]["distilled_by"]["started"] == made["provenance"]["started"]
    for key in ("curve", "perplexity", "tokens"):
        assert taken[key] == made[key]
    assert len(models(tmp_path)) == 1


def test_two_processes_take_it_as_one_does(words, first, tmp_path):
    assert [status(child) for child in team(composed(*words), tmp_path / "second")] == [0, 0]
    assert "distilled_by" in read_json(tmp_path / "second" / "results.json")["provenance"]
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_without_snapshots_there_is_nothing_to_keep(cli):
    status, _, err = cli(*TINY_RUN, "reuse=true", "snapshot.every_minutes=null")
    assert status == 2
    assert err.count("\n") == 1 and "reuse=true" in err
