"""Losses of a fine-tuning, thinned out for the result."""

from collections.abc import Mapping
from typing import Any

from lillama.config import Stage
from lillama.distill.snapshot import Snapshot
from lillama.finetune import Update

POINTS = 100  # of the loss, in the result; the logger has every update's


class LossLine:
    """The losses of a fine-tuning, each the mean over a hundredth of it, with the tokens seen by then."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self._points: list[tuple[int, float]] = []
        self._open: list[float] = []

    @classmethod
    def of(cls, start: Snapshot | None) -> "LossLine":
        """Make a new line of losses, or the one that a snapshot holds."""
        return cls() if start is None else cls.from_state(start.note[Stage.finetune.name]["loss"])

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "LossLine":
        """Make the line of losses whose :meth:`state` this is."""
        line = cls()
        line.tokens, line.steps, line._open = int(state["tokens"]), int(state["steps"]), list(state["open"])
        line._points = [(tokens, loss) for tokens, loss in state["points"]]
        return line

    def add(self, update: Update) -> None:
        """Take note of an update."""
        self.tokens, self.steps = update.tokens, update.step + 1
        self._open.append(update.loss)
        if self.steps * POINTS // update.steps > update.step * POINTS // update.steps:
            self._points.append((update.tokens, sum(self._open) / len(self._open)))
            self._open = []

    def state(self) -> dict[str, Any]:
        """Return what :meth:`from_state` resumes from, as plain values."""
        points = [list(point) for point in self._points]
        return {"tokens": self.tokens, "steps": self.steps, "open": list(self._open), "points": points}

    def figures(self) -> dict[str, Any]:
        """Tokens, steps, and the losses by tokens."""
        return {"tokens": self.tokens, "steps": self.steps, "loss": self._points}
