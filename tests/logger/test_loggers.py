import csv

import pytest

from lillama.config import LoggerConfig, LoggerKind
from lillama.logger import make_logger


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
