"""Finished distillations kept by content: a run that would make the same model begins from it (``reuse=true``)."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lillama.cache import Cache, touch
from lillama.config import MADE_BY_DEFAULT, RunConfig
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.errors import SnapshotError
from lillama.fingerprint import run_fingerprint

log = logging.getLogger(__name__)
KIND = "models"


class Kept:
    """The place of the model that a configuration makes, whatever is measured of it: its factors and its curve."""

    def __init__(self, config: RunConfig) -> None:
        key = run_fingerprint(replace(config, stages=[stage for stage in MADE_BY_DEFAULT if stage in config.stages]))
        root = Path(config.cache_dir).expanduser()
        self._snapshots = Snapshots(root / KIND / key, key, replace(config.snapshot, keep=1), check=_check)
        self._lock = partial(Cache(root).lock, key, "the same model")

    def find(self) -> Snapshot | None:
        """The finished distillation, if a run has left it."""
        with self._lock():  # whoever looks removes what is half-written
            found = self._snapshots.newest()
        if found is not None:
            touch(self._snapshots.folder)
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
                if self._snapshots.newest() is None:  # one that is there may be read just now
                    parts = {name: _without_moments(made.part(name)) for name in made.parts}
                    self._snapshots.save(made.step, made.position, note, parts)
        except (OSError, SnapshotError) as error:
            log.warning("reuse=true: the distilled model is not kept for other runs: %s", error)


def _check(note: Mapping[str, Any]) -> None:
    """Read what a run takes over of a note, so that one of another shape raises."""
    str(note["made"]["started"]), dict(note["seconds"]), list(note["curve"]["points"]), int(note["tokens"])
    int(note["peak_memory"])


def _without_moments(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"optimizer": None} if "optimizer" in part else part
