"""The folder of a run: who is at work in it, whose result it holds, and whether a run may write there at all."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lillama.config import RunConfig, Stage, plain
from lillama.core.errors import ConfigError, WriteError, disk_trouble
from lillama.core.outputs import CHECKPOINT, HOME, LOG, NAMES, PLAN, Outputs
from lillama.core.results import FILE, RunResult, read_json, read_result, write_json
from lillama.run.run import Run

log = logging.getLogger(__name__)
LOCK = "lock"
PATHS = ("path", "tokenizer", "file", "baseline", "tasks_dir", "cache_dir")  # keys whose value may be a place on a disk
CHOOSE = "choose another folder or name"


def made(folder: Path) -> Path:
    """Make a run's folder, and the place in it that holds the lock.

    :raises ConfigError: where it cannot be made or written.
    """
    try:
        (folder / HOME).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(f"hydra.run.dir={folder}: cannot be written ({error.strerror})") from None
    return folder


@contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a run's folder to this process; the lock goes with the process, however it ends.

    :param wait: for another process that is at work in it, to its end.
    :raises ConfigError: where another process is at work in it, and this one does not wait.
    """
    lock = FileLock(folder / HOME / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if not wait:
            raise ConfigError(f"hydra.run.dir={folder}: another process is at work in this folder") from None
        log.info("another process is at work in %s; waiting for it", folder)
        lock.acquire(timeout=-1)
    except OSError as error:
        raise ConfigError(f"hydra.run.dir={folder}: cannot be locked ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def check_inputs(config: RunConfig, folder: Path) -> None:
    """Check that a run does not write where it reads.

    :raises ConfigError: for an input, or the cache, in a place of the folder that a run writes to or removes; for a
        folder inside an input, which the run's own files would change.
    """
    home = folder.resolve()
    for key, value, group in _paths(plain(config)):
        place = _place(key, value)
        if place is None:
            continue
        if place != home and place.is_relative_to(home):
            part = place.relative_to(home).parts[0]
            if part in (HOME, *NAMES):
                raise ConfigError(
                    f"hydra.run.dir={folder}: a run writes its own {part} there, and {key} is {value}; {CHOOSE}"
                )
        elif home.is_relative_to(place) and place.is_dir() and key != "cache_dir" and not group.get("files"):
            raise ConfigError(f"hydra.run.dir={folder}: lies in {key}={value}, which the run would change; {CHOOSE}")


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the paths of a configuration: dotted key, value, and the group that it stands in."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
        elif name in PATHS and isinstance(value, str) and value:
            yield f"{prefix}{name}", value, values


def _place(key: str, value: str) -> Path | None:
    """Resolve a path, links followed; None where there is nothing, for instance for a Hub id.

    :raises ConfigError: for a home folder that there is not.
    """
    try:
        place = Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(f"{key}={value}: there is no such home folder; give a path without ~") from None
    try:
        return place.resolve() if place.exists() else None
    except (OSError, ValueError):  # too long, a NUL: whoever reads it says so
        return None


def finished(config: RunConfig, outputs: Outputs, fingerprint: str) -> dict[str, Any] | None:
    """Return the result that a folder already holds for this very run, with the checkpoint where one is asked for.

    :raises ConfigError: where the folder holds the finished result or the checkpoint of another run, or what no run
        wrote and a run would replace.
    """
    folder = outputs.folder
    found = read_result(folder)
    if found is not None and found["status"] == "done" and found["fingerprint"] != fingerprint:
        raise ConfigError(
            f"hydra.run.dir={folder}: holds another run ({found['name']}, fingerprint {found['fingerprint'][:8]},"
            f" this one is {fingerprint[:8]}); {CHOOSE}, or remove it"
        )
    if not outputs.listed and found is not None:
        _adopt(outputs, found, fingerprint)
    if foreign := outputs.foreign():
        raise ConfigError(outputs.refusal(foreign))
    if found is not None and found["status"] == "done":
        wanted = config.save_checkpoint and bool({Stage.init, Stage.finetune} & set(config.stages))
        if config.stages == [Stage.plan] and not _holds_plan(folder):
            log.warning("%s is damaged or lost; the plan is made anew", folder / PLAN)
        elif not wanted or outputs.has(CHECKPOINT):
            return found
    elif outputs.has(CHECKPOINT) and (outputs.done or outputs.fingerprint != fingerprint):
        beside = (
            "holds a checkpoint of another run"
            if outputs.fingerprint != fingerprint
            else (f"holds a finished checkpoint, and its {FILE} is damaged or lost")
        )
        raise ConfigError(f"hydra.run.dir={folder}: {beside}; {CHOOSE}, or move {CHECKPOINT}/ away")
    if found is None and outputs.has(FILE):
        log.warning("%s is damaged; the run is made anew", folder / FILE)
    return None


def _holds_plan(folder: Path) -> bool:
    try:
        return isinstance(read_json(folder / PLAN)["ranks"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _adopt(outputs: Outputs, found: Mapping[str, Any], fingerprint: str) -> None:
    """Take over a folder that a run of an earlier version left: this very run, or one that could not begin."""
    if found["fingerprint"] == fingerprint:
        outputs.adopt(fingerprint, done=found["status"] == "done")
    elif not found["fingerprint"]:
        outputs.adopt(None, done=False, names=(FILE, LOG))


def leave_word(run: Run, outputs: Outputs, error: BaseException) -> None:
    """Write a failed result for a run that could not begin; the report of a sweep then says FAILED and why.

    A folder in which another process is at work, or that holds another result, or anything else that a run would
    replace, stays as it is.
    """
    result = RunResult(
        status="failed" if isinstance(error, Exception) else "interrupted",
        fingerprint="",
        name=run.config.name,
        overrides=list(run.overrides),
        settings=plain(run.config),
        provenance={},
        choices=dict(run.choices),
        error=f"{type(error).__name__}: {error}",
    )
    folder = outputs.folder
    found = read_result(folder)
    if not outputs.listed and found is not None:
        _adopt(outputs, found, "")
    if outputs.foreign() or (found is not None and found["fingerprint"]):
        return
    try:
        outputs.claim(FILE)
        write_json(folder / FILE, result.as_dict())
    except (OSError, ConfigError) as trouble:
        log.debug("no word is left in %s: %s", folder, trouble)


@contextmanager
def disk_explained(folder: Path) -> Iterator[None]:
    """Raise a :class:`WriteError` where an error within means that the disk takes no more."""
    try:
        yield
    except (WriteError, ConfigError):
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        free = f"; {shutil.disk_usage(folder).free / 1e9:.1f} GB are free there"
        raise WriteError(f"hydra.run.dir={folder}: {reason}{free}") from None
