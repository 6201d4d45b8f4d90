"""Open and close a run's record: whatever happens, ``results.json`` says so."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lillama.config import RunConfig, plain
from lillama.core.machine import hardware, reset_peaks
from lillama.core.outputs import Outputs
from lillama.core.preempt import Preemption
from lillama.core.provenance import git_state, versions
from lillama.core.results import FILE, RunResult, write_json
from lillama.run.folder import leave_word
from lillama.run.record import Record, Start
from lillama.run.run import Run

log = logging.getLogger(__name__)


@contextmanager
def following(config: RunConfig, folder: Path) -> Iterator[Record]:
    """The record of a process that keeps none: nothing is written."""
    result = RunResult(status="running", fingerprint="", name=config.name, overrides=[], settings={}, provenance={})
    yield Record(Outputs(folder), result)


@contextmanager
def recording(
    run: Run,
    outputs: Outputs,
    fingerprint: str,
    start: Start,
    *,
    preemption: Preemption,
) -> Iterator[Record]:
    """Keep a run's record: done, failed or interrupted, the folder ends with a whole ``results.json``.

    A request to end that comes while it is written waits: torchrun sends one when another process has died.

    Until :meth:`Record.begin` nothing that the folder holds is touched.
    """
    reset_peaks()
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    result = RunResult(
        status="running",
        fingerprint=fingerprint,
        name=run.config.name,
        overrides=list(run.overrides),
        settings=plain(run.config),
        provenance={"versions": versions(), "git": git_state(), "hardware": hardware(), "started": started},
        choices=dict(run.choices),
    )
    record = Record(outputs, result, start)
    known = start.note or start.taken
    if known is not None:
        record.go_on(known)
    try:
        yield record
        with preemption.last_word():
            result.status = "done"
            end(record)
    except BaseException as error:
        with preemption.last_word():
            result.status = "failed" if isinstance(error, Exception) else "interrupted"
            result.error = f"{type(error).__name__}: {error}"
            end(record)
            if not record.begun:
                leave_word(run, outputs, error)
        raise
    finally:
        close_logger(record)


def end(record: Record) -> None:
    """Write the last word of a run that has begun, on a full disk into the room that was reserved for it."""
    if not record.begun:
        return
    record.note_peaks()
    result = record.result
    try:
        write_json(record.folder / FILE, result.as_dict())
    except OSError:
        record.outputs.release()
        write_json(record.folder / FILE, result.as_dict())
    record.outputs.release()
    if result.status == "done":
        record.outputs.finish()


def close_logger(record: Record) -> None:
    """Give the logger the run's figures and close it."""
    result = record.result
    try:
        record.logger.finish(result.figures(), failed=result.status != "done")
    except Exception as error:  # noqa: BLE001 - the run has its result, whatever becomes of the metrics
        log.warning("the logger could not be closed: %s", error)
