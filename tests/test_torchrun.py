"""Two processes under torchrun on one run: the same factors as one process, and what happens when one dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lillama.results import read_json
from tests.conftest import ROOT, TINY_RUN

WORDS = (*TINY_RUN, "distill.batch_size=3", "evaluate.every_tokens=512", "init=svd")


def command(*words, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*(launcher if processes > 1 else [sys.executable]), str(ROOT / "run.py"), *words]


def start(*words, processes=2):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*words, processes=processes), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def finished(*words, processes=2):
    process = start(*words, processes=processes)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def factors(folder):
    held = load_file(folder / "checkpoint" / "model.safetensors")
    return {name: value for name, value in held.items() if ".A." in name or ".B." in name}


def assert_same(folder, other, limit=1e-5):
    found, wanted = factors(folder), factors(other)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() / value.norm() < limit, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finished(*WORDS, f"hydra.run.dir={folder}", processes=1)
    return folder


@pytest.mark.parametrize("mode", ["data", "blocks"])
def test_two_processes_give_what_one_gives(alone, tmp_path, mode):
    """Three sequences a step: the processes have different shares."""
    out = finished(*WORDS, f"parallel={mode}", f"hydra.run.dir={tmp_path / mode}")
    assert_same(tmp_path / mode, alone)
    assert out.count("perplexity end") == 1, "the first process speaks"
    one, two = (read_json(folder / "results.json") for folder in (alone, tmp_path / mode))
    assert two["status"] == "done"
    assert [tokens for tokens, _ in two["curve"]] == [tokens for tokens, _ in one["curve"]]
    for (_, found), (_, wanted) in zip(two["curve"], one["curve"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    assert (tmp_path / mode / "metrics.csv").read_text().count("loss/mean") == (
        alone / "metrics.csv"
    ).read_text().count("loss/mean")


def test_a_blockwise_schedule_shares_batches_too(tmp_path):
    words = (*WORDS, "distill/schedule=blockwise", "distill.micro_batch=1")
    finished(*words, f"hydra.run.dir={tmp_path / 'one'}", processes=1)
    finished(*words, f"hydra.run.dir={tmp_path / 'two'}")
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


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("mode", ["data", "blocks"])
def test_where_one_process_dies_the_other_says_so_and_the_restart_goes_on(tmp_path, mode):
    folder = tmp_path / "run"
    words = (*WORDS, f"parallel={mode}", "data.tokens=12288", "snapshot.every_steps=3", "evaluate.every_tokens=0")
    process = start(*words, f"hydra.run.dir={folder}")
    wait_for(lambda: len(list((folder / "snapshots").glob("step-*"))) == 2, process)
    os.kill(worker_of(process, 1), signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "another process of the run is gone" in err or "the run was asked to end" in err, err
    result = read_json(folder / "results.json")
    assert result["status"] in ("failed", "interrupted")
    assert list((folder / "snapshots").glob("step-*"))
    finished(*words, f"hydra.run.dir={folder}")
    result = read_json(folder / "results.json")
    assert (result["status"], result["tokens"]) == ("done", 12288)
    finished(*words, f"hydra.run.dir={tmp_path / 'whole'}", processes=1)
    assert_same(folder, tmp_path / "whole", limit=1e-4)
    assert torch.isfinite(next(iter(factors(folder).values()))).all()
