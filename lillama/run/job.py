"""A run under way in one process, and the snapshots that it goes on from."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.config import RunConfig, Stage
from lillama.core.errors import SnapshotError
from lillama.core.outputs import SNAPSHOTS, TUNING_SNAPSHOTS
from lillama.core.preempt import Preemption
from lillama.distill.parallel import Team
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.run.record import Record
from lillama.run.reuse import Kept
from lillama.run.tuning import LossLine, Resumption
from lillama.strategy.plan import RankPlan


@dataclass(frozen=True, slots=True)
class Saves:
    """The snapshots of the two stages that are long and learn; ``kept`` is what all runs of the same model share."""

    distill: Snapshots
    finetune: Snapshots
    kept: Kept | None = None

    @classmethod
    def of(cls, config: RunConfig, folder: Path, fingerprint: str, *, background: bool) -> "Saves":
        """Open the snapshots in a run's folder, and the place of its model in the cache where it may be shared."""
        made: dict[str, Any] = {"key": fingerprint, "config": config.snapshot, "background": background}
        distill = Snapshots(folder / SNAPSHOTS, check=check_note, **made)
        finetune = Snapshots(folder / TUNING_SNAPSHOTS, check=check_tuning_note, **made)
        kept = Kept(config) if config.reuse and Stage.distill in config.stages else None
        return cls(distill, finetune, kept)

    def found(self) -> Snapshot | None:
        """Return the distillation that another run has made of the same model."""
        return None if self.kept is None else self.kept.find()

    def tuned(self, config: RunConfig, start: Snapshot | None) -> Snapshot | None:
        """Return the fine-tuning's latest; of no use where what it began with has to be distilled anew."""
        anew = Stage.distill in config.stages and start is None
        return None if anew else self.finetune.latest()

    def close(self) -> None:
        """Wait for what is being written: the run is done, and nobody needs it any more."""
        for snapshots in (self.distill, self.finetune):
            with suppress(SnapshotError):
                snapshots.close()


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
        """Return the note that the run kept with the last snapshot of all."""
        return note_of(self.start, self.tuned)

    def resumption(self, **known: Any) -> Resumption:
        """Make the fine-tuning's resumption: where it is saved, what is known before it, and what it resumes from."""
        return Resumption(self.preemption, self.saves.finetune, self.tuned, known)


def check_note(note: Mapping[str, Any]) -> None:
    """Read all that a run goes on from in a snapshot's note, so that one of another shape raises."""
    kinds = {"seconds": dict, "tokens": int, "peak_memory": int, "logger": dict}
    if not all(isinstance(note[key], kind) for key, kind in kinds.items()):
        raise TypeError("a note of another shape")
    if "curve" in note:  # a fine-tuning of a finished model has none
        check_curve(note["curve"])
    if "plan" in note:  # older ones lack it
        RankPlan.from_dict(note["plan"])


def check_tuning_note(note: Mapping[str, Any]) -> None:
    """:func:`check_note` for a fine-tuning's."""
    check_note(note)
    own = note[Stage.finetune.name]
    check_curve(own["curve"])
    LossLine.from_state(own["loss"])


def check_curve(state: Mapping[str, Any]) -> None:
    """Read the state of a curve."""
    for tokens, perplexity in state["points"]:
        float(tokens), float(perplexity)
    float(state["dense"] or 0)


def note_of(start: Snapshot | None, tuned: Snapshot | None) -> Mapping[str, Any] | None:
    """Return the note that a run kept with the later of two snapshots; None where it begins."""
    last = tuned or start
    return None if last is None else last.note
