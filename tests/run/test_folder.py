"""The folder of a run: the user's own files in it, inputs, checkpoints and results of other runs, a full disk."""

import errno
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import lillama.core.errors
import lillama.run.pipeline
import lillama.run.recording
from lillama.core.outputs import HOME, LIST, NAMES, Outputs
from lillama.core.results import read_json, read_result, write_json
from lillama.report.__main__ import main as report
from lillama.run.folder import alone
from lillama.run.pipeline import run
from lillama.run.record import Record
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN, composed

PLAN = (*TINY_RUN, "stages=[plan]")
START = (*TINY_RUN, "stages=[plan,init]", "init=svd")
TYPO = (*TINY_RUN, "strategy=uniform", "strategy.reduction=0.99")
NO_TEXT = (*TINY_RUN, "data=local", "data.path=/no/such/text")
REQUESTS = {
    "plan": PLAN,
    "start": START,
    "a start anew": (*START, "seed=3"),
    "a size out of reach": [word for word in TYPO if not word.startswith(("strategy.k", "strategy.m", "strategy=bo"))],
    "no such text": NO_TEXT,
}
INNER = ("checkpoint/notes.txt", "snapshots/mine.pt", "snapshots/step-00000001/own.txt", "scratch/a/b.txt")
OWN = st.sampled_from([*NAMES, *(f".{name}.partial" for name in NAMES), *INNER, "train.jsonl", ".hydra/config.yaml"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder that nobody used, and folders in which a run was: finished, failed with a checkpoint, refused."""
    root = tmp_path_factory.mktemp("folders")
    (root / "new").mkdir()
    run(composed(*START), root / "done")
    shutil.copytree(root / "done", root / "failed")
    result = read_json(root / "failed" / "results.json")
    write_json(root / "failed" / "results.json", result | {"status": "failed"})
    outputs = Outputs(root / "failed")
    outputs.begin(result["fingerprint"])
    return root


@contextmanager
def cut_short(monkeypatch):
    """Have a distillation killed after its first step."""
    told = Record.log_step

    def killed(record, tokens, metrics):
        told(record, tokens, metrics)
        if tokens >= 512:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "log_step", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def all_files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.sampled_from(["new", "done", "failed"]),
    names=st.sets(OWN, max_size=3),
    requests=st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=2),
)
@example(before="new", names={"checkpoint", "metrics.csv"}, requests=["start"])
@example(before="new", names={"plan.json", "log.txt"}, requests=["a size out of reach", "start"])
@example(before="failed", names={"checkpoint/notes.txt"}, requests=["start"])
@example(before="done", names={"snapshots"}, requests=["start"])
@example(before="done", names={"train.jsonl", ".hydra/config.yaml"}, requests=["start"])
@example(before="new", names={"train.jsonl", ".hydra/config.yaml"}, requests=["no such text", "start"])
@example(before="done", names={"log.txt"}, requests=["start"])
@example(before="failed", names={".results.json.partial"}, requests=["start"])
@example(before="failed", names={".checkpoint.partial"}, requests=["start"])
def test_the_users_files_are_all_still_there(folders, cli, before, names, requests):
    """After every refused and every successful request, byte for byte."""
    folder = folders / "run"  # one place for all: what runs there is then composed once a request
    shutil.copytree(folders / before, folder)
    try:
        own = {}
        for name in sorted(names):
            file = folder / name if "." in name else folder / name / "model.safetensors"
            if file.exists() or any((folder / part).is_file() for part in Path(name).parents):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"the user's own {name}".encode())
            own[str(file.relative_to(folder))] = file.read_bytes()
        for request in requests:
            status, _, err = cli(*REQUESTS[request], f"hydra.run.dir={folder}")
            assert status in (0, 2), err
            assert own.items() <= all_files(folder).items(), (request, err)
            assert status == 0 or f"hydra.run.dir={folder}" in err or "reach" in err or "/no/such/text" in err
    finally:
        shutil.rmtree(folder)


def test_what_a_killed_run_left_half_written_goes_when_a_run_begins(folders, cli, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "failed", folder)
    half = f".lillama-{'0' * 32}.partial"
    (folder / half).mkdir()
    (folder / half / "model.safetensors").write_bytes(b"half")
    (folder / HOME / half).write_text("{")
    assert cli(*START, f"hydra.run.dir={folder}")[0] == 0
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("name", ["checkpoint", "snapshots", "scratch", "metrics.csv", "plan.json", "config.yaml"])
def test_what_no_run_wrote_is_named_and_the_folder_refused(name, cli, tmp_path):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("own")
    status, _, err = cli(*PLAN, f"hydra.run.dir={tmp_path}")
    assert status == 2
    assert f"hydra.run.dir={tmp_path}: holds {name}, which no run wrote" in err
    assert {path.name for path in tmp_path.iterdir()} == {name, HOME}, "no result of a folder that is not ours"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=hub model.path={run}/checkpoint", "model.path"),
        ("model=hub model.path={run}", "lies in model.path"),
        ("model.tokenizer={run}/checkpoint", "model.tokenizer"),
        ("strategy=plan strategy.file={run}/plan.json", "strategy.file"),
        ("data=local data.path={run}/curve.csv", "data.path"),
        ("cache_dir={run}/scratch", "cache_dir"),
        ("model=hub model.path={link}", "model.path"),
    ],
)
def test_an_input_in_the_place_of_an_output_is_refused_and_untouched(word, said, folders, cli, tmp_path):
    """Although a run of ours wrote all of it."""
    folder = tmp_path / "run"
    shutil.copytree(folders / "failed", folder)
    (folder / "scratch").mkdir()
    (folder / "curve.csv").write_text("tokens,perplexity\n")
    (tmp_path / "link").symlink_to(folder / "checkpoint")
    words = word.format(run=folder, link=tmp_path / "link").split()
    before = all_files(folder)
    groups = {own.partition("=")[0].partition(".")[0] for own in words}
    fitting = [own for own in START if own.partition("=")[0].partition(".")[0] not in groups]
    status, _, err = cli(*fitting, *words, f"hydra.run.dir={folder}")
    assert status == 2, err
    assert said in err
    assert f"hydra.run.dir={folder}" in err
    after = all_files(folder)
    assert before.items() <= after.items()


def test_a_request_that_is_refused_leaves_what_an_earlier_unfinished_run_wrote(cli, tmp_path, monkeypatch):
    with cut_short(monkeypatch):
        run(composed(*TINY_RUN, "snapshot.every_minutes=null"), tmp_path)
    before = {name: data for name, data in all_files(tmp_path).items() if not name.startswith(HOME)}
    assert {"metrics.csv", "curve.csv", "plan.json"} <= before.keys()
    for request in ("a size out of reach", "no such text"):
        assert cli(*REQUESTS[request], f"hydra.run.dir={tmp_path}")[0] == 2
        assert {name: data for name, data in all_files(tmp_path).items() if not name.startswith(HOME)} == before
    assert cli(*TINY_RUN, "distill.lr=1e-4", f"hydra.run.dir={tmp_path}")[0] == 0, "and another run may have the folder"
    assert read_json(tmp_path / "results.json")["settings"]["distill"]["lr"] == 1e-4


def test_a_checkpoint_is_replaced_by_the_unfinished_run_that_wrote_it_and_by_no_other(folders, cli, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders / "failed", folder)
    before = weights(folder)
    status, _, err = cli(*START, "seed=3", f"hydra.run.dir={folder}")
    assert status == 2
    assert f"hydra.run.dir={folder}: holds a checkpoint of another run" in err
    assert same(weights(folder), before)
    assert cli(*START, f"hydra.run.dir={folder}")[0] == 0
    assert same(weights(folder), before)
    assert read_json(folder / "results.json")["status"] == "done"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"fingerprint": "x"}', '{"fingerprint": 3, "status": "done"}']
)
def test_a_damaged_result_beside_a_finished_checkpoint(text, folders, cli, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(folders / "done", folder)
    (folder / "results.json").write_text(text)
    before = weights(folder)
    status, _, err = cli(*START, f"hydra.run.dir={folder}")
    assert status == 2
    assert "its results.json is damaged or lost" in err
    assert same(weights(folder), before)
    assert report([str(tmp_path)]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_a_result_without_keys_that_older_versions_lacked_is_read_with_their_defaults(folders, tmp_path):
    result = read_json(folders / "done" / "results.json")
    write_json(tmp_path / "results.json", {key: value for key, value in result.items() if key != "finetune"})
    assert read_result(tmp_path) == result
    write_json(tmp_path / "results.json", result | {"seconds": []})
    assert read_result(tmp_path) is None


def test_a_plan_that_is_lost_or_damaged_is_made_anew(cli, tmp_path):
    words = (*PLAN, f"hydra.run.dir={tmp_path}")
    shown = cli(*words)[1]
    for damage in (lambda file: file.unlink(), lambda file: file.write_text("[]")):
        damage(tmp_path / "plan.json")
        status, out, err = cli(*words)
        assert status == 0, err
        assert "plan.json is damaged or lost" in err
        assert out.partition("seconds")[0] == shown.partition("seconds")[0]


def test_a_folder_of_an_earlier_version_goes_on_with_the_same_run_only(cli, tmp_path, monkeypatch):
    """It kept no list of what it wrote."""
    with cut_short(monkeypatch):
        run(composed(*TINY_RUN, "snapshot.every_steps=1"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / HOME)
    status, _, err = cli(*TINY_RUN, "distill.lr=1e-4", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert "which no run wrote" in err
    status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    assert "going on from snapshot" in err
    assert cli(*TINY_RUN, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    assert "snapshots" not in {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("text", ["", "[]", '{"names": ["/etc"], "fingerprint": null, "done": false}', '{"names": 3}'])
def test_a_list_that_is_damaged_names_nothing(text, tmp_path):
    (tmp_path / HOME).mkdir()
    (tmp_path / HOME / LIST).write_text(text)
    (tmp_path / "plan.json").write_text("{}")
    outputs = Outputs(tmp_path)
    assert not outputs.listed
    assert outputs.foreign() == ["plan.json"]


def test_a_sweep_waits_for_the_cell_that_another_one_runs(folders, tmp_path, monkeypatch):
    """And takes its result."""
    shutil.copytree(folders / "done", tmp_path / "run")
    monkeypatch.setattr(lillama.run.pipeline, "run_stages", lambda *_: pytest.fail("it was run again"))
    found = []
    with alone(tmp_path / "run"):
        other = threading.Thread(target=lambda: found.append(run(composed(*START), tmp_path / "run", wait=True)))
        other.start()
        other.join(0.2)
        assert not found
    other.join()
    assert found == [read_json(tmp_path / "run" / "results.json")]


def test_a_full_disk_is_one_line_and_the_result_says_failed(cli, tmp_path, monkeypatch):
    """The last word is written into the room that was kept for it."""
    disk = {"full": False}

    def written(file, value):
        if disk["full"] and (tmp_path / HOME / "reserve").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write_json(file, value)

    def fill(*_, **__):
        disk["full"] = True
        raise RuntimeError("[enforce fail at inline_container.cc] No space left on device")

    monkeypatch.setattr(lillama.run.recording, "write_json", written)
    monkeypatch.setattr(lillama.run.pipeline, "start_factors", fill)
    status, _, err = cli(*START, f"hydra.run.dir={tmp_path}")
    assert status == 1
    assert "Traceback" not in err
    assert f"error: hydra.run.dir={tmp_path}: No space left on device" in err
    result = read_json(tmp_path / "results.json")
    assert result["status"] == "failed"
    assert "No space left" in result["error"]


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(lillama.core.errors.ConfigError, match=r"hydra\.run\.dir=.*cannot be written"):
        run(composed(*PLAN), tmp_path)


def test_a_home_that_there_is_not(tmp_path):
    with pytest.raises(lillama.core.errors.ConfigError, match="cache_dir=~nosuchuser/c: there is no such home folder"):
        run(composed(*PLAN, "cache_dir='~nosuchuser/c'"), tmp_path)
