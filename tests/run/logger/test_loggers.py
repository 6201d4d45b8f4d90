import csv

import pytest

from lillama.config import LoggerConfig, LoggerKind
from lillama.run.logger import make_logger


def logger_of(kind, folder, **options):
    return make_logger(LoggerConfig(kind=kind, **options), folder, group="sweep", settings={"a": {"b": 1}})


def test_csv_keeps_every_metric(tmp_path):
    logger = logger_of(LoggerKind.csv, tmp_path)
    logger.log({"loss": 1.5, "lr": 0.1}, tokens=10)
    logger.log({"perplexity": 9.0}, tokens=20)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [("10", "loss", "1.5"), ("10", "lr", "0.1"), ("20", "perplexity", "9.0")]
    logger.finish({})


def test_none_writes_nothing(tmp_path):
    logger = logger_of(LoggerKind.none, tmp_path)
    logger.log({"loss": 1.0}, tokens=1)
    logger.finish({})
    assert not list(tmp_path.iterdir())


def test_wandb_runs_offline_and_logs_against_seen_tokens(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    logger = logger_of(LoggerKind.wandb, tmp_path, tags=["t"])
    run = logger._run
    assert run.settings._offline
    assert (run.group, run.config["a"], tuple(run.tags)) == ("sweep", {"b": 1}, ("t",))
    logger.log({"perplexity": 9.0}, tokens=20)
    logger.log({"perplexity": 8.0}, tokens=40)
    assert run.summary["perplexity"] == 8.0
    assert run.summary["tokens"] == 40
    logger.finish({"perplexity.end": 8.0})
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_csv_goes_on_where_the_snapshot_was_made(tmp_path):
    """What was logged after it will be computed again, and stands there once."""
    before = logger_of(LoggerKind.csv, tmp_path)
    for tokens in (10, 20):
        before.log({"loss": float(tokens)}, tokens=tokens)
    state = before.state()
    before.log({"loss": 30.0}, tokens=30)
    before.finish({})
    settings = {"group": "sweep", "settings": {}, "resume": {"tokens": 20, **state}}
    after = make_logger(LoggerConfig(kind=LoggerKind.csv), tmp_path, **settings)
    after.log({"loss": 31.0}, tokens=30)
    after.finish({})
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["tokens"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("10", "10.0"), ("20", "20.0"), ("30", "31.0")]


def test_wandb_goes_on_with_the_same_run(tmp_path):
    pytest.importorskip("wandb")
    before = logger_of(LoggerKind.wandb, tmp_path, mode="offline")
    state = before.state()
    before.finish({}, failed=True)
    settings = {"group": "sweep", "settings": {}, "resume": {"tokens": 20, **state}}
    after = make_logger(LoggerConfig(kind=LoggerKind.wandb, mode="offline"), tmp_path, **settings)
    assert after.state() == state
    after.finish({})


def test_csv_goes_on_with_a_run_that_had_another_logger(tmp_path):
    """The logger does not belong to what a run is: it may be another one after a break."""
    settings = {"group": "sweep", "settings": {}, "resume": {"tokens": 20, "id": "a"}}
    after = make_logger(LoggerConfig(kind=LoggerKind.csv), tmp_path, **settings)
    after.log({"loss": 31.0}, tokens=30)
    after.finish({})
    assert (tmp_path / "metrics.csv").read_text().split() == ["tokens,metric,value", "30,loss,31.0"]


@pytest.mark.parametrize("named", ["WANDB_MODE", "logger.mode"])
def test_wandb_asked_to_be_online_without_a_key_is_offline_and_says_so(named, tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = logger_of(LoggerKind.wandb, tmp_path, mode="online" if named == "logger.mode" else None)
    assert logger._run.settings._offline
    assert "logged offline" in caplog.text
    assert "wandb login" in caplog.text
    logger.finish({})


def test_wandb_whose_server_does_not_answer_is_offline_and_one_that_cannot_write_is_silent(
    tmp_path, monkeypatch, caplog
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    begun, broken = [], {"online"}
    plain = wandb.init

    def init(*, mode, **options):
        begun.append(mode)
        if mode in broken:
            raise wandb.errors.CommError("no route to host")
        return plain(mode=mode, **options)

    monkeypatch.setattr(wandb, "init", init)
    logger_of(LoggerKind.wandb, tmp_path).finish({})
    assert begun == ["online", "offline"]
    assert "logged offline, `wandb sync` sends it later (no route to host)" in caplog.text
    broken.add("offline")
    silent = logger_of(LoggerKind.wandb, tmp_path)
    silent.log({"loss": 1.0}, tokens=1)
    silent.finish({})
    assert begun[2:] == ["online", "offline", "disabled"]
    assert "nothing is logged" in caplog.text
