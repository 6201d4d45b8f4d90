"""Who listened to a signal before a run hears of it after the run, whatever came in which order."""

import os
import signal
import subprocess
import sys

import pytest

import lillama.run.pipeline
import lillama.run.recording
from lillama.core.errors import Preempted, TeamError
from lillama.core.preempt import PREEMPTED, leave, leave_when_asked, listening
from lillama.core.results import read_json, write_json
from lillama.run.pipeline import run
from tests.conftest import ROOT, TINY_RUN, composed


@pytest.fixture
def heard():
    """Like a launcher: it takes note of SIGTERM and, on SIGUSR2, puts its job back into the queue and ends."""
    names = []

    def back_into_the_queue(number, frame):
        names.append("SIGUSR2")
        raise SystemExit

    before = signal.signal(signal.SIGTERM, lambda *_: names.append("SIGTERM"))
    before2 = signal.signal(signal.SIGUSR2, back_into_the_queue)
    yield names
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGUSR2, before2)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (["SIGTERM"], ["SIGTERM"]),
        (["SIGUSR2"], ["SIGUSR2"]),
        (["SIGTERM", "SIGUSR2"], ["SIGTERM", "SIGUSR2"]),
        (["SIGUSR2", "SIGTERM"], ["SIGUSR2"]),
        (["SIGTERM", "SIGTERM"], ["SIGTERM"]),
    ],
    ids="+".join,
)
def test_the_launcher_hears_of_every_signal_when_the_step_is_saved(heard, sent, told):
    saved = False
    with pytest.raises(SystemExit if "SIGUSR2" in sent else Preempted), listening() as preemption:
        with preemption.later():
            for name in sent:
                os.kill(os.getpid(), getattr(signal, name))
            assert not heard, "the step is under way"
            saved = True
        preemption.end()
    assert saved
    assert heard == told


def test_a_run_that_is_over_leaves_the_signals_to_whom_they_were(heard):
    with listening():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ["SIGTERM"]


def test_what_puts_a_job_back_is_not_ended_with_the_job(heard):
    """SLURM ends all processes of a job that is put back, ``scontrol requeue`` among them: it must return whole."""
    before = signal.signal(signal.SIGUSR2, lambda *_: subprocess.check_call(["sh", "-c", "kill -TERM $$; exit 0"]))
    with pytest.raises(Preempted), listening():
        os.kill(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ["SIGTERM"], "it is heard again afterwards"


def test_what_puts_a_job_back_does_so_once_though_the_signal_comes_again(heard):
    put_back = signal.getsignal(signal.SIGUSR2)

    def again(*arguments):
        os.kill(os.getpid(), signal.SIGUSR2)
        put_back(*arguments)

    signal.signal(signal.SIGUSR2, again)
    with pytest.raises(SystemExit), listening() as preemption, preemption.later():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert heard == ["SIGUSR2"]


@pytest.mark.parametrize(
    ("command", "ends"), [(["scontrol", "requeue", "3_0"], SystemExit), (["other"], subprocess.CalledProcessError)]
)
def test_a_job_that_slurm_has_put_back_itself_has_not_failed(heard, command, ends):
    """As submitit puts it back; what else fails there is told."""

    def fails(*_):
        raise subprocess.CalledProcessError(1, command)

    signal.signal(signal.SIGUSR2, fails)
    with pytest.raises(ends) as found, listening():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert ends is not SystemExit or found.value.code == PREEMPTED


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_asked_while_the_command_line_still_imports_it_ends_with_75(name, tmp_path):
    """Hydra, the first thing that is imported, sends the signal here."""
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "__init__.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "run.py"), *TINY_RUN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == PREEMPTED
    assert done.stderr == f"{name}: the run was asked to end; the same command goes on with it\n"


@pytest.fixture
def early():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    leave_when_asked()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_hears_the_signal_itself_and_ends_as_it_should(early):
    with pytest.raises(Preempted), listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is leave, "heard at once again, before the next cell of a sweep"


def test_a_request_that_a_runs_end_overtakes_is_not_forgotten(early):
    """A sweep would go on to its next cell."""
    with pytest.raises(Preempted), listening() as preemption, preemption.later():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGINT", "SIGINT"]], ids="+".join)
def test_asked_while_the_last_word_is_written_a_run_writes_it_whole(early, names, tmp_path, monkeypatch):
    """Torchrun sends SIGTERM when another process has died, at about the time at which that is noticed here."""

    def asked(file, value):
        if value.get("status", "running") != "running":
            for name in names:
                os.kill(os.getpid(), getattr(signal, name))
        write_json(file, value)

    def gone(*_):
        raise TeamError("another process of the run is gone")

    monkeypatch.setattr(lillama.run.recording, "write_json", asked)
    monkeypatch.setattr(lillama.run.pipeline, "compress", gone)
    with pytest.raises(TeamError):
        run(composed(*TINY_RUN), tmp_path)
    result = read_json(tmp_path / "results.json")
    assert (result["status"], result["error"]) == ("failed", "TeamError: another process of the run is gone")
