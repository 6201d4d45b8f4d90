"""Snapshots of a run: where its stages that learn are saved, and what they go on from."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.config import Stage
from lillama.core.errors import SnapshotError
from lillama.core.outputs import SNAPSHOTS, TUNING_SNAPSHOTS
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.run.loss_line import LossLine
from lillama.run.reuse import Kept
from lillama.run.run import Run
from lillama.strategy.plan import RankPlan

Note = Mapping[str, Any]


@dataclass(slots=True)
class Resume:
    """The snapshots of the distillation and of the fine-tuning, and the latest of each that :meth:`find` has found.

    :param distils: whether distillation is a stage of the run.
    :param kept: the place in the cache that all runs of the same model share.
    :param distilled: the distillation to go on from. :param borrowed: it is another run's, and finished.
    :param tuned: the fine-tuning to go on from.
    """

    distilling: Snapshots
    tuning: Snapshots
    distils: bool
    kept: Kept | None = None
    distilled: Snapshot | None = None
    borrowed: bool = False
    tuned: Snapshot | None = None

    @classmethod
    def of(cls, run: Run, folder: Path, fingerprint: str, *, background: bool) -> "Resume":
        """Open the snapshots in a run's folder, and the place of its model in the cache where it may be shared."""
        made: dict[str, Any] = {"key": fingerprint, "config": run.config.snapshot, "background": background}
        distilling = Snapshots(folder / SNAPSHOTS, check=check_note, **made)
        tuning = Snapshots(folder / TUNING_SNAPSHOTS, check=check_tuning_note, **made)
        distils = Stage.distill in run.stages
        return cls(distilling, tuning, distils, Kept(run) if run.config.reuse and distils else None)

    def find(self) -> None:
        """Find the latest snapshots; a fine-tuning's is of no use where what it began with is distilled anew."""
        self.distilled = self.distilling.latest()
        if self.distilled is None and self.kept is not None:
            self.distilled = self.kept.find()
            self.borrowed = self.distilled is not None
        if self.distilled is not None or not self.distils:
            self.tuned = self.tuning.latest()

    @property
    def note(self) -> Note | None:
        """Return the note that was kept with the last snapshot of all; None where the run begins."""
        last = self.tuned or self.distilled
        return None if last is None else last.note

    @property
    def own_note(self) -> Note | None:
        """Return the note of the last snapshot that this run made."""
        return None if self.tuned is None and self.borrowed else self.note

    @property
    def borrowed_note(self) -> Note | None:
        """Return the note of another run's distillation that this one goes on from."""
        return self.distilled.note if self.borrowed and self.distilled is not None else None

    def close(self) -> None:
        """Wait for what is being written: the run is done, and nobody needs it any more."""
        for snapshots in (self.distilling, self.tuning):
            with suppress(SnapshotError):
                snapshots.close()


def check_note(note: Note) -> None:
    """Read all that a run goes on from in a snapshot's note, so that one of another shape raises."""
    kinds = {"seconds": dict, "tokens": int, "peak_memory": int, "logger": dict}
    if not all(isinstance(note[key], kind) for key, kind in kinds.items()):
        raise TypeError("a note of another shape")
    if "curve" in note:  # a fine-tuning of a finished model has none
        check_curve(note["curve"])
    if "plan" in note:  # older ones lack it
        RankPlan.from_dict(note["plan"])


def check_tuning_note(note: Note) -> None:
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
