"""Runs in forks of the test's process, which has everything imported: they begin at once."""

import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import RLock

from hydra.core.global_hydra import GlobalHydra
from tqdm import tqdm

from lillama.run.pipeline import run

RUN = Path(__file__).resolve().parent.parent / "run.py"


def fork(work: Callable[[], object]) -> int:
    """Do it in a child; its process number."""
    child = os.fork()
    if child == 0:
        # tqdm's own lock is one for all forks: a child that is killed while it holds it would stop every other.
        tqdm.set_lock(RLock())
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must end here, not in pytest
            os._exit(1)
        os._exit(0)
    return child


def status(child: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class CommandLine:
    """``python run.py ...`` in a fork: the script itself, with its own words, output, environment and signals."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.returncode: int | None = None
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - they last as long as it
        self.pid = fork(lambda: self._begin(words, env or {}))

    def _begin(self, words: tuple[str, ...], env: Mapping[str, str]) -> None:
        for number, file in ((1, self._output), (2, self._errors)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.update(env)
        GlobalHydra.instance().clear()
        sys.argv = [str(RUN), *words]
        try:
            runpy.run_path(str(RUN), run_name="__main__")
        except SystemExit as leave:
            os._exit(int(leave.code or 0))

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it is at work."""
        if self.returncode is None:
            ended, found = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(found) if ended else None
        return self.returncode

    def wait(self) -> int:
        """Wait for its end: what :meth:`poll` then says."""
        if self.returncode is None:
            self.returncode = status(self.pid)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return _whole(self._output)

    @property
    def err(self) -> str:
        """What it has said on standard error so far."""
        return _whole(self._errors)


def _whole(file) -> str:
    """A file's content, read aside: its place is shared with the fork that writes it."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def team(config, folder, processes: int = 2) -> list[int]:
    """The processes of one run, by rank, with the environment that torchrun gives them."""

    def member(own: dict[str, str]) -> None:
        os.environ.update(own)
        run(config, folder)

    return [fork(partial(member, own)) for own in places(processes)]


def places(processes: int = 2) -> list[dict[str, str]]:
    """The environments that torchrun gives the processes of one run, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    return [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
