"""The files that runs wrote into a folder: a list kept in it, extended before each of them is first written.

Only what stands on the list is ever removed or replaced; whatever else lies in the folder is the user's own.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lillama.core.errors import ConfigError
from lillama.core.half_written import sweep
from lillama.core.results import FILE, read_json, write_json

HOME = ".lillama"  # holds the list, the lock, and Hydra's own files
LIST, RESERVE = "outputs.json", "reserve"
OOM_HINTS = 2**18  # bytes that are kept for the last word of a run on a full disk
CHECKPOINT, SCRATCH = "checkpoint", "scratch"
SNAPSHOTS, TUNING_SNAPSHOTS = "snapshots", "snapshots_finetune"
LOG, SETTINGS, PLAN, METRICS = "log.txt", "config.yaml", "plan.json", "metrics.csv"
CURVE, TUNING_CURVE = ("curve.csv", "curve.png"), ("finetune.csv", "finetune.png")
BENCH_CHART, STABLE_RANK_CHART = "bench.png", "stable_rank.png"
FORECAST = ("forecast.json", "forecast.png")
LASTING = (CHECKPOINT, LOG)  # a run that begins anew replaces the one when it saves, and extends the other
PASSING = (FILE, SETTINGS, PLAN, METRICS, *CURVE, *TUNING_CURVE, BENCH_CHART, STABLE_RANK_CHART, *FORECAST)
UNFINISHED = (SNAPSHOTS, TUNING_SNAPSHOTS, SCRATCH)  # only an unfinished run needs them
NAMES = (*LASTING, *PASSING, *UNFINISHED)
WITHIN = ("step-*/*.pt", "step-*/manifest.json", ".lillama-*.partial/*", "*/*.bin")  # what those folders hold


class Outputs:
    """Files that runs wrote into ``folder``, and the last run: its fingerprint, and whether it was finished.

    ``listed`` is false where the folder has no list: no run was here, or one of an earlier version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        held = _read_list(folder / HOME / LIST)
        self.listed = held is not None
        self.fingerprint: str | None = held["fingerprint"] if held else None
        self.done: bool = held["done"] if held else False
        self._names: set[str] = set(held["names"]) if held else set()
        self._checkpoint: list[str] | None = held.get("checkpoint") if held else None

    def adopt(self, fingerprint: str | None, *, done: bool, names: Iterable[str] = NAMES) -> None:
        """Take what is there for a run's, in a folder of an earlier version, which kept no list."""
        self.fingerprint, self.done = fingerprint, done
        self._names = {name for name in names if self._present(name)}

    def foreign(self) -> list[str]:
        """Names that a run writes and that are taken by what no run wrote; files beside a checkpoint's own too."""
        names = [name for name in NAMES if name not in self._names and self._present(name)]
        if self._checkpoint is None or CHECKPOINT in names:
            return names
        return [
            *names,
            *(f"{CHECKPOINT}/{name}" for name in self._files_of_checkpoint() if name not in self._checkpoint),
        ]

    def has(self, name: str) -> bool:
        """Tell whether something of this name is there, whoever wrote it; one that is half-written is not."""
        return (self.folder / name).exists()

    def begin(self, fingerprint: str) -> None:
        """Note which run is at work, and remove what one that was killed left half-written."""
        self.fingerprint, self.done = fingerprint, False
        self._write()
        self._sweep()

    def finish(self) -> None:
        """Note that the run is finished, and remove what only an unfinished one needs."""
        self.done = True
        self.remove(*UNFINISHED)
        self._write()
        self._sweep()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """In the end, take off the list what nothing was written under: a file put there later is the user's."""
        try:
            yield
        finally:
            there = {name for name in self._names if self._present(name)}
            if there != self._names:
                self._names = there
                with suppress(ConfigError):  # a full disk: of that the run itself tells
                    self._write()

    def note_checkpoint(self) -> None:
        """Keep the names of the files that the checkpoint was saved as."""
        self._checkpoint = self._files_of_checkpoint()
        self._write()

    def claim(self, *names: str) -> None:
        """Put names on the list before they are written.

        :raises ConfigError: where one is taken by what no run wrote.
        """
        for name in names:
            if name not in self._names and self._present(name):
                raise ConfigError(self.refusal([name]))
        if CHECKPOINT in names:
            self._checkpoint = None  # what it was saved as does not hold any more
        elif set(names) <= self._names:
            return
        self._names |= set(names)
        self._write()

    def remove(self, *names: str) -> None:
        """Remove those of the names that are on the list, and take them off it; a stranger's file in a folder stays."""
        gone = [name for name in names if name in self._names]
        for name in gone:
            _remove(self.folder / name)
        if gone:
            self._names -= set(gone)
            self._write()

    def refusal(self, names: list[str]) -> str:
        """Return the line for names that are taken by what no run wrote."""
        return (
            f"hydra.run.dir={self.folder}: holds {', '.join(names)}, which no run wrote and which a run would replace;"
            " choose another folder or name, or move it away"
        )

    def reserve(self) -> None:
        """Take room on the disk that :meth:`release` gives back; random bytes, which no file system makes smaller."""
        (self.folder / HOME / RESERVE).write_bytes(os.urandom(OOM_HINTS))

    def release(self) -> None:
        """Give the room back."""
        (self.folder / HOME / RESERVE).unlink(missing_ok=True)

    def _files_of_checkpoint(self) -> list[str]:
        root = self.folder / CHECKPOINT
        return sorted(str(file.relative_to(root)) for file in root.rglob("*") if not file.is_dir())

    def _present(self, name: str) -> bool:
        path = self.folder / name
        return path.exists() or path.is_symlink()

    def _sweep(self) -> None:
        sweep(self.folder)
        sweep(self.folder / HOME)

    def _write(self) -> None:
        home = self.folder / HOME
        try:
            home.mkdir(exist_ok=True)
            held = {"fingerprint": self.fingerprint, "done": self.done, "names": sorted(self._names)}
            write_json(home / LIST, held | {"checkpoint": self._checkpoint})
        except OSError as error:
            raise ConfigError(f"hydra.run.dir={self.folder}: cannot be written ({error.strerror})") from None
        self.listed = True


def _read_list(file: Path) -> dict[str, Any] | None:
    """Return a folder's list; None where there is none that can be read: nothing in the folder is then a run's."""
    try:
        held = read_json(file)
        names, fingerprint = held["names"], held["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not set(map(str, names)) <= set(NAMES):
        return None
    if not isinstance(fingerprint, str | None) or not isinstance(held.get("done"), bool):
        return None
    return dict(held)


def _remove(path: Path) -> None:
    """Remove a file, a link, or what a run writes into a folder, and the folder with it where nothing else is in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for pattern in WITHIN:
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)
    for folder in (*sorted((inner for inner in path.rglob("*") if inner.is_dir()), reverse=True), path):
        with suppress(OSError):  # something else is in it
            folder.rmdir()
