"""A run under way in one process, and the snapshots that it goes on from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.config import RunConfig, Stage
from lillama.distill.parallel import Team
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.preempt import Preemption
from lillama.record import SNAPSHOTS, TUNING_SNAPSHOTS, Record
from lillama.reuse import Kept
from lillama.tuning import Resumption


@dataclass(frozen=True, slots=True)
class Saves:
    """The snapshots of the two stages that are long and learn; ``kept`` is what all runs of the same model share."""

    distill: Snapshots
    finetune: Snapshots
    kept: Kept | None = None

    @classmethod
    def of(cls, config: RunConfig, folder: Path, fingerprint: str, *, background: bool) -> "Saves":
        """Those in a run's folder, and the place of its model in the cache where it may be shared."""
        places = (folder / SNAPSHOTS, folder / TUNING_SNAPSHOTS)
        distill, finetune = (Snapshots(place, fingerprint, config.snapshot, background=background) for place in places)
        kept = Kept(config) if config.reuse and Stage.distill in config.stages else None
        return cls(distill, finetune, kept)

    def found(self) -> Snapshot | None:
        """The distillation that another run has made of the same model."""
        return None if self.kept is None else self.kept.find()

    def tuned(self, config: RunConfig, start: Snapshot | None) -> Snapshot | None:
        """The fine-tuning's latest; of no use where what it began with has to be distilled anew."""
        anew = Stage.distill in config.stages and start is None
        return None if anew else self.finetune.latest()

    def remove(self) -> None:
        """Remove them all: the run is done."""
        self.distill.remove()
        self.finetune.remove()


@dataclass(frozen=True, slots=True)
class Job:
    """A run under way in this process: what is asked for, where it is told, what it goes on from."""

    config: RunConfig
    record: Record
    team: Team
    preemption: Preemption
    saves: Saves
    start: Snapshot | None
    tuned: Snapshot | None = None

    @property
    def note(self) -> Mapping[str, Any] | None:
        """What the run kept of itself with the last snapshot of all."""
        return note_of(self.start, self.tuned)

    def resumption(self, **known: Any) -> Resumption:
        """How the fine-tuning is saved, with what is known before it, and what it goes on from."""
        return Resumption(self.preemption, self.saves.finetune, self.tuned, known)


def note_of(start: Snapshot | None, tuned: Snapshot | None) -> Mapping[str, Any] | None:
    """What a run kept of itself with the later of two snapshots; None where it begins."""
    last = tuned or start
    return None if last is None else last.note
