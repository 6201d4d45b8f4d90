"""A sweep on a real SLURM, submitted with the site file: taken from its node, cancelled, started again."""

import re
import signal

import pytest

from lillama.core.results import read_json
from lillama.report.__main__ import main
from lillama.report.cells import cells
from lillama.run.pipeline import run
from tests.checkpoints import same, weights
from tests.conftest import ROOT, TINY_RUN, composed
from tests.forks import CommandLine
from tests.slurm.cluster import cluster, missing, slurm
from tests.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing() or "")]
# Long enough to be met at work; no snapshot but the one that the signal brings.
WORDS = (*TINY_RUN, "data.tokens=16384", "distill.batch_size=1", "evaluate.every_tokens=0")
# What a user edits in his copy of the site file.
SITE = {"gpus_per_node": "null", "cpus_per_task": "1", "timeout_min": "30", "partition": "spare"}


@pytest.fixture(scope="module", autouse=True)
def slurm_here():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    with cluster():
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a site file for this cluster: the shipped one, copied and edited."""
    text = (ROOT / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text()
    for key, value in SITE.items():
        text, count = re.subn(rf"(?m)^{key}: .*$", f"{key}: {value}", text)
        assert count == 1, key
    folder = tmp_path_factory.mktemp("site")
    (folder / "hydra" / "launcher").mkdir(parents=True)
    (folder / "hydra" / "launcher" / "here.yaml").write_text(text)
    return folder


@pytest.fixture
def sweep(site, tmp_path):
    """Start the sweep of this test, two cells, as a user does; whatever happens, its process is ended."""
    processes = []

    def start():
        words = [*WORDS, "seed=0,1", "hydra/launcher=here", f"hydra.sweep.dir={tmp_path}"]
        processes.append(CommandLine("--config-dir", str(site), "-m", *words))
        return processes[-1]

    yield start
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def told(submitted, folder):
    """All that was written about a sweep; for a test that fails."""
    return lambda: "\n".join(
        (
            submitted.out[-3000:],
            submitted.err[-3000:],
            *(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in folder.glob(".submitit/*/*_log.*")),
        )
    )


def at_work(cell):
    rows = cell.folder / "metrics.csv"
    return rows.exists() and "loss/mean" in rows.read_text()


def wait_until_at_work(submitted, folder):
    def both():
        assert submitted.poll() is None, told(submitted, folder)()
        return (folder / "multirun.yaml").exists() and all(map(at_work, cells(folder)))

    wait_for(both, "both cells at work", told(submitted, folder))
    return slurm("squeue", "-h", "-o", "%F").split()[0]


def steps_gone_on_from(cell):
    text = (cell.folder / "log.txt").read_text()
    return [int(step) for step in re.findall(r"going on from snapshot step-(\d+)", text)]


def at_work_again(cell):
    """Whether a step was done after those that it went on from."""
    steps = (cell.folder / "metrics.csv").read_text().count("loss/mean")
    return read_json(cell.folder / "results.json")["status"] == "running" and steps > max(steps_gone_on_from(cell))


def test_a_cell_that_is_cancelled_and_then_loses_its_node_ends_with_the_same_bits(sweep, tmp_path, capsys):
    """After the cancelled job the same sweep does what is left; what loses its node is put back and goes on."""
    submitted = sweep()
    job = wait_until_at_work(submitted, tmp_path)
    cancelled, other = cells(tmp_path)
    slurm("scancel", f"{job}_0")
    wait_for(lambda: statuses(tmp_path) == ["INTERRUPTED", "done"], "the other cell", told(submitted, tmp_path))
    submitted.send_signal(signal.SIGINT)  # without accounting the launcher waits for the cancelled job
    wait_for(lambda: submitted.poll() is not None, "the end of what had submitted it", told(submitted, tmp_path))
    assert submitted.returncode == 1
    assert main([str(tmp_path)]) == 1
    assert f"{cancelled.folder.name}: INTERRUPTED: Preempted: SIGTERM" in capsys.readouterr().err
    before = (other.folder / "results.json").read_bytes()
    submitted = sweep()
    wait_for(lambda: at_work_again(cancelled), "the cell at work again", told(submitted, tmp_path))
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_for(lambda: submitted.poll() is not None, "the sweep's end", told(submitted, tmp_path))
    assert submitted.returncode == 0, told(submitted, tmp_path)()
    assert main([str(tmp_path)]) == 0, told(submitted, tmp_path)()
    assert capsys.readouterr().out.count("done") == 2
    assert (other.folder / "results.json").read_bytes() == before
    assert "already done, nothing to run" in (other.folder / "log.txt").read_text()
    gone_on, put_back = steps_gone_on_from(cancelled)
    assert 0 < gone_on < put_back, "each went on from what the signal had it save"
    run(composed(*WORDS, "seed=0"), tmp_path / "whole")
    assert same(weights(cancelled.folder), weights(tmp_path / "whole"))


def statuses(folder):
    return [cell.status for cell in cells(folder)]
