"""A machine that is taken back (SLURM, spot instances) says so by a signal; the run saves itself and ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lillama.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Whether the run was asked to end; while it is :meth:`put off <later>`, the one who asked must be looked after."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._later = False

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal; raises :class:`Preempted` unless a step is under way."""
        self.signal = signal.Signals(number)
        if not self._later:
            self.end()

    def end(self) -> None:
        """End the run: it was asked to, or another process of it was."""
        by = "another process" if self.signal is None else self.signal.name
        raise Preempted(f"{by}: the run was asked to end; the same command goes on with it")

    @contextmanager
    def later(self) -> Iterator[None]:
        """Do not end within: what is done there is done whole."""
        self._later = True
        try:
            yield
        finally:
            self._later = False

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
    """Hear SIGTERM and SIGUSR1 for as long as the context lasts.

    Whoever listened before (a launcher that resubmits its job) hears of the signal when the run has ended.
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
        handler = None if preemption.signal is None else before[preemption.signal]
        if callable(handler):
            handler(preemption.signal, None)
