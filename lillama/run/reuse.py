"""Finished distillations kept by content: a run that would make the same model begins from it (``reuse=true``)."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lillama.config import MADE_BY_DEFAULT
from lillama.core.errors import SnapshotError
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.run.fingerprint import run_fingerprint
from lillama.run.run import Run

log = logging.getLogger(__name__)
KIND = "models"


class Kept:
    """The place of the model that a configuration makes, whatever is measured of it: its factors and its curve."""

    def __init__(self, run: Run) -> None:
        made = [stage for stage in MADE_BY_DEFAULT if stage in run.stages]
        self._key = run_fingerprint(replace(run, config=replace(run.config, stages=made)))
        self._cache = run.cache
        self._settings = replace(run.config.snapshot, keep=1)

    def find(self) -> Snapshot | None:
        """Find the finished distillation, if a run has left it; one that was changed since is dropped."""
        with self._lock():
            found = self._held()
        if found is not None:
            log.info("the model is taken as another run has distilled it (%s)", found.note["made"]["started"])
        return found

    def keep(self, made: Snapshot, provenance: Mapping[str, Any]) -> None:
        """Keep a finished distillation; without AdamW's moments, since nothing is learnt after it.

        Where it cannot be written, a warning says so: the run has its model.

        :param provenance: of the run that made it.
        """
        note = {key: value for key, value in made.note.items() if key != "logger"} | {"made": dict(provenance)}
        try:
            with self._lock():
                if self._held() is None:  # one that is there may be read just now
                    parts = {name: _without_moments(made.part(name)) for name in made.parts}
                    self._cache.write_folder(
                        KIND,
                        self._key,
                        lambda folder: self._snapshots(folder).save(made.step, made.position, note, parts),
                    )
        except (OSError, SnapshotError) as error:
            log.warning("reuse=true: the distilled model is not kept for other runs: %s", error)

    def _held(self) -> Snapshot | None:
        try:
            folder = self._cache.folder(KIND, self._key)
            return None if folder is None else self._snapshots(folder).newest()
        except OSError as error:
            log.warning("reuse=true: the distilled model that is kept cannot be read (%s)", error)
            return None

    def _snapshots(self, folder: Path) -> Snapshots:
        return Snapshots(folder, self._key, self._settings, check=_check)

    def _lock(self) -> AbstractContextManager[None]:
        return self._cache.lock(self._key, "the same model")


def _check(note: Mapping[str, Any]) -> None:
    """Read what a run takes over of a note, so that one of another shape raises."""
    str(note["made"]["started"]), dict(note["seconds"]), list(note["curve"]["points"]), int(note["tokens"])
    int(note["peak_memory"])


def _without_moments(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"optimizer": None} if "optimizer" in part else part
