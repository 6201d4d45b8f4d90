"""A machine that is taken back (SLURM, spot instances) says so by a signal, a person by Ctrl-C; the run saves first."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lillama.core.errors import Preempted

log = logging.getLogger(__name__)
BY_SYSTEM = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # SIGUSR2: submitit's, for its jobs
SIGNALS = (*BY_SYSTEM, signal.SIGINT)
PREEMPTED = 75  # EX_TEMPFAIL: the exit status by which a scheduler is told to start the same again


def leave(number: int, frame: FrameType | None = None) -> None:
    """End this process at once: while it still imports, and between the cells of a sweep, nothing is under way."""
    os.write(2, f"{_asked_by(signal.Signals(number).name)}\n".encode())
    os._exit(PREEMPTED)  # an exception might be caught by whatever is being imported


def leave_when_asked() -> None:
    """Have the system's requests to end heard from now on; a run that begins hears them itself."""
    for number in BY_SYSTEM:
        signal.signal(number, leave)


def _asked_by(name: str) -> str:
    return f"{name}: the run was asked to end; the same command goes on with it"


class Preemption:
    """State of a request to end; while it is :meth:`put off <later>`, the one who asked must be looked after."""

    def __init__(self) -> None:
        self.asked: list[signal.Signals] = []
        self._later = self._speaking = False

    @property
    def signal(self) -> signal.Signals | None:
        """Return the last signal; none where nobody has asked."""
        return self.asked[-1] if self.asked else None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal; the run ends at once unless a step is under way. A second Ctrl-C does not wait."""
        again = self.signal is signal.SIGINT and number == signal.SIGINT
        self.asked.append(signal.Signals(number))
        if self._speaking:
            return
        if again or not self._later:
            self.end()
        if number == signal.SIGINT:
            log.warning("the step is finished and saved first; Ctrl-C again ends at once")

    def end(self) -> None:
        """End the run: it was asked to, or another process of it was.

        :raises KeyboardInterrupt: after Ctrl-C. :raises Preempted: otherwise.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        by = "another process" if self.signal is None else self.signal.name
        raise Preempted(_asked_by(by))

    @contextmanager
    def later(self) -> Iterator[None]:
        """Do not end within: what is done there is done whole."""
        self._later = True
        try:
            yield
        finally:
            self._later = False

    @contextmanager
    def last_word(self) -> Iterator[None]:
        """Do not end within, whoever asks and however often: the run ends anyway, and its folder is to say why."""
        self._speaking = True
        try:
            yield
        finally:
            self._speaking = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """End at any moment within, whatever is put off around it: nothing is lost."""
        before, self._later = self._later, False
        try:
            if self.signal is not None:
                self.end()
            yield
        finally:
            self._later = before


@contextmanager
def listening() -> Iterator[Preemption]:
    """Hear SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C for as long as the context lasts.

    Whoever listened before (a launcher that puts its job back into the queue) hears of each signal, in the order in
    which they came, when the run has ended and all of it is on disk. Where nobody did, a request that the run's end
    has overtaken ends the process all the same: a sweep does not go on to its next cell.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, preemption.ask) for number in SIGNALS}
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for asked in dict.fromkeys(preemption.asked):
            if callable(before[asked]) and before[asked] is not leave and asked is not signal.SIGINT:
                with _deaf_to(signal.SIGTERM, asked), _in_the_queue_already():
                    before[asked](asked, None)
    if preemption.signal is not None:
        preemption.end()


@contextmanager
def _in_the_queue_already() -> Iterator[None]:
    """End the process, and not the job, where a launcher fails to put its job back into the queue.

    SLURM may have put it back itself, a moment before: ``scontrol requeue`` then fails, and the job, which will start
    again, would have failed in the launcher's eyes. Where it is not in the queue, it has ended without a result, which
    a launcher tells.
    """
    try:
        yield
    except subprocess.CalledProcessError as error:
        if list(error.cmd[:2]) != ["scontrol", "requeue"]:
            raise
        log.warning("the job could not be put back into the queue; it may be there already")
        sys.exit(PREEMPTED)


@contextmanager
def _deaf_to(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore signals within, in this process and in those that it starts.

    SLURM ends a job that is put back into the queue, with all its processes: among them the ``scontrol requeue`` by
    which a launcher asks for it in the job itself, which has then failed in the launcher's eyes. And it may send the
    signal that is being answered once more, from srun: a job that waits in the queue cannot be put back again.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
