"""The log of a run in its folder, beside what a terminal shows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lillama.core.outputs import LOG, Outputs

FORMAT, TIME = "%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"


class LogFile(logging.FileHandler):
    """A log file that says nothing where its disk is full: the run itself tells of that."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line."""


@contextmanager
def logged(outputs: Outputs) -> Iterator[None]:
    """Write what is logged within to ``log.txt`` too; an earlier log is extended."""
    outputs.claim(LOG)
    handler = LogFile(outputs.folder / LOG, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT, TIME))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
