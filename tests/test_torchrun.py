"""Two processes on one run: the same factors as one process, and what happens when one dies.

Most are forks with torchrun's environment, since starting Python is most of the time; one run is torchrun's own.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lillama.config import Parallel
from lillama.core.results import read_json
from lillama.run.pipeline import run
from tests.checkpoints import weights
from tests.conftest import ROOT, TINY_RUN, composed
from tests.forks import CommandLine, places, status, team
from tests.waiting import wait_for

WORDS = (*TINY_RUN, "distill.batch_size=3", "evaluate.every_tokens=512", "init=svd")
LONG = ("data.tokens=12288", "snapshot.every_steps=3", "evaluate.every_tokens=0")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def start(*words):
    """Two processes at work on a run."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(ROOT / "run.py"), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def factors(folder):
    return {name: value for name, value in weights(folder).items() if ".A." in name or ".B." in name}


def assert_same(folder, other, limit=1e-5):
    found, wanted = factors(folder), factors(other)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() / value.norm() < limit, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(composed(*WORDS), folder)
    return folder


def finish_together(config, folder):
    assert [status(child) for child in team(config, folder)] == [0, 0]


@pytest.mark.parametrize("mode", ["data", "blocks"])
def test_two_processes_give_what_one_gives(alone, tmp_path, mode):
    """Three sequences a step: the processes have different shares."""
    finish_together(composed(*WORDS, f"parallel={mode}"), tmp_path / mode)
    assert_same(tmp_path / mode, alone)
    one, two = (read_json(folder / "results.json") for folder in (alone, tmp_path / mode))
    assert two["status"] == "done"
    assert [tokens for tokens, _ in two["curve"]] == [tokens for tokens, _ in one["curve"]]
    for (_, found), (_, wanted) in zip(two["curve"], one["curve"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    assert (tmp_path / mode / "metrics.csv").read_text().count("loss/mean") == (
        alone / "metrics.csv"
    ).read_text().count("loss/mean")


@pytest.mark.parametrize(
    "more", [("distill/schedule=blockwise", "distill.micro_batch=1"), ("factors=pivoted", "parallel=blocks")], ids=str
)
def test_a_blockwise_schedule_shares_batches_and_pivots_are_every_processs(tmp_path, more):
    config = composed(*WORDS, *more)
    run(replace(config, parallel=Parallel.data), tmp_path / "one")
    finish_together(config, tmp_path / "two")
    assert_same(tmp_path / "two", tmp_path / "one")


def worker_of(process, rank):
    """The process with this rank under torchrun."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == process.pid and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    return None


@pytest.mark.parametrize("mode", ["data", "blocks"])
def test_where_one_process_dies_the_other_says_so_and_the_restart_goes_on(tmp_path, mode):
    folder, config = tmp_path / "run", composed(*WORDS, *LONG, f"parallel={mode}")
    first, second = team(config, folder)
    wait_for(lambda: snapshots(folder) == 2, "two snapshots")
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    assert (status(second), status(first)) == (-signal.SIGKILL, 1)
    assert time.monotonic() - killed < 60
    result = read_json(folder / "results.json")
    assert result["status"] == "failed"
    assert "another process of the run is gone" in result["error"]
    assert snapshots(folder)
    finish_together(config, folder)
    goes_on_like_a_whole_run(folder, tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_torchrun_ends_the_run_where_one_process_dies_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "run"
    words = (*WORDS, *LONG, "parallel=data", f"hydra.run.dir={folder}")
    process = start(*words)
    wait_for(lambda: snapshots(folder) == 2, "two snapshots")
    os.kill(worker_of(process, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "another process of the run is gone" in err or "the run was asked to end" in err, err
    assert read_json(folder / "results.json")["status"] in ("failed", "interrupted")
    again = [CommandLine(*words, env=own) for own in places()]
    assert [process.wait() for process in again] == [0, 0], again[0].err
    assert "perplexity end" in again[0].out
    assert not again[1].out, "the first process speaks"
    goes_on_like_a_whole_run(folder, tmp_path / "whole")


def snapshots(folder):
    return len(list((folder / "snapshots").glob("step-*")))


def goes_on_like_a_whole_run(folder, whole):
    result = read_json(folder / "results.json")
    assert (result["status"], result["tokens"]) == ("done", 12288)
    run(composed(*WORDS, *LONG), whole)
    assert_same(folder, whole, limit=1e-4)
    assert torch.isfinite(next(iter(factors(folder).values()))).all()
