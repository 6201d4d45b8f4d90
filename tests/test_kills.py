"""A run that is killed at random moments, as an operator or a scheduler kills it: the same factors in the end.

The runs are forks of this process, which has everything imported: a kill then meets the run, not Python's start.
"""

import csv
import os
import random
import signal
import time

import pytest

from lillama.core.results import read_json
from lillama.run.pipeline import run
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN, composed
from tests.forks import CommandLine, fork, status

KILLS = 5
WORDS = (*TINY_RUN, "data.tokens=12288", "distill.batch_size=4", "snapshot.every_steps=2", "evaluate.every_tokens=4096")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def in_a_fork(config, folder, end=None, after=0.0):
    """Run in a child, send it a signal after some seconds; its exit status, or minus the signal that ended it."""
    child = fork(lambda: run(config, folder))
    if end is not None:
        time.sleep(after)
        os.kill(child, end)
    return status(child)


@pytest.mark.parametrize("schedule", ["joint", "blockwise"])
def test_kills_at_random_moments_change_no_bit(tmp_path, schedule):
    config = composed(*WORDS, f"distill/schedule={schedule}")
    began = time.monotonic()
    assert in_a_fork(config, tmp_path / "whole") == 0
    seconds, chance = time.monotonic() - began, random.Random(0)
    # A quarter of a run at most, so that the last of them meets a run that is still under way.
    ends = [in_a_fork(config, tmp_path / "run", signal.SIGKILL, chance.uniform(0, seconds / 4)) for _ in range(KILLS)]
    assert ends.count(-signal.SIGKILL) > KILLS / 2, "most of them met a run under way"
    assert in_a_fork(config, tmp_path / "run") == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    one, two = (read_json(tmp_path / name / "results.json") for name in ("whole", "run"))
    for key in ("curve", "tokens", "status", "perplexity"):
        assert one[key] == two[key]
    assert metric_rows(tmp_path / "run") == metric_rows(tmp_path / "whole")
    assert (tmp_path / "run" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    assert not (tmp_path / "run" / "snapshots").exists(), "a finished run needs none"


@pytest.mark.parametrize("schedule", ["joint", "blockwise"])
def test_asked_to_end_on_the_command_line_it_saves_itself_and_goes_on_from_there(tmp_path, schedule):
    words = (*TINY_RUN, "data.tokens=4096", "distill.batch_size=1", f"distill/schedule={schedule}")
    process = CommandLine(*words, f"hydra.run.dir={tmp_path / 'run'}")
    rows = tmp_path / "run" / "metrics.csv"
    while not (rows.exists() and "loss/mean" in rows.read_text()):
        assert process.poll() is None, process.err
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.err
    assert "SIGTERM: the run was asked to end; the same command goes on with it" in process.err
    assert read_json(tmp_path / "run" / "results.json")["status"] == "interrupted"
    (manifest,) = (read_json(path / "manifest.json")["manifest"] for path in newest(tmp_path / "run"))
    assert manifest["step"] > 0, "not only the one that was made at the start"
    config = composed(*words)
    assert in_a_fork(config, tmp_path / "run") == 0
    assert in_a_fork(config, tmp_path / "whole") == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    steps = [metric_rows(tmp_path / name) for name in ("run", "whole")]
    assert steps[0] == steps[1], "every step is told once"


def newest(folder):
    return sorted((folder / "snapshots").glob("step-*"))[-1:]


def metric_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [(row["tokens"], row["metric"]) for row in csv.DictReader(file)]
