"""The stage ``finetune`` of a run: its clock, its curve, its losses, its snapshots."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lillama.config import MEASURES, Stage
from lillama.core.outputs import TUNING_CURVE, TUNING_SNAPSHOTS
from lillama.core.preempt import Preemption
from lillama.data.calibration import described
from lillama.distill.progress import LoopContext, as_parts
from lillama.distill.snapshot import Snapshot, Snapshots
from lillama.evaluate.curve import Curve
from lillama.finetune import TrainableModel, Update, fine_tune
from lillama.model.blocks import Blocks
from lillama.model.offload import onloaded
from lillama.run.measure import Measurement
from lillama.run.record import Record

NAME = Stage.finetune.name
POINTS = 100  # of the loss, in the result; the logger has every update's


@dataclass(frozen=True, slots=True)
class Resumption:
    """Place where a fine-tuning is saved, and the snapshot that it resumes from.

    :param known: what every snapshot keeps beside the fine-tuning's own: the curve of the distillation before it.
    """

    preemption: Preemption
    snapshots: Snapshots
    start: Snapshot | None
    known: Mapping[str, Any]


def tune(
    measurement: Measurement, model: nn.Module, resumption: Resumption, teacher: nn.Module | None = None
) -> nn.Module:
    """Fine-tune a model, and note what it was and the perplexity after it; the model, in evaluation mode.

    :param teacher: the dense model, where its logits are what is learnt.
    :raises DivergedError: for a loss or a weight that is not finite.
    """
    config, record, inputs = measurement.config, measurement.record, measurement.inputs
    assert inputs.tuning is not None
    blocks = Blocks(model)
    record.claim(TUNING_SNAPSHOTS, *TUNING_CURVE)
    with record.stage(NAME), onloaded([blocks[index] for index in range(len(blocks))]):
        torch.manual_seed(config.seed)
        tuned = TrainableModel(model, config.finetune)
        losses, curve = LossLine.of(resumption.start), _curve(measurement, resumption.start)
        if resumption.start is None:
            curve.add(tuned, tokens=0)
        context = _session(measurement, tuned, curve, losses, resumption)
        fine_tune(tuned, inputs.tuning, config.finetune, context, _teller(record, losses), teacher=teacher)
        curve.add(tuned, losses.tokens)
        learnt = sum(parameter.numel() for parameter in tuned.learning.values())
        settled = tuned.settle()
    curve.draw(title=f"{config.model.name}, fine-tuned")
    made = {"objective": config.finetune.objective.name, **losses.figures(), "parameters": learnt}
    figures = {**made, "curve": curve.points, "data": described(inputs.tuning)}
    record.note_finetune(figures, curve.points[-1][1] if curve.points else None, inputs.text)
    return settled


class LossLine:
    """The losses of a fine-tuning, each the mean over a hundredth of it, with the tokens seen by then."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self._points: list[tuple[int, float]] = []
        self._open: list[float] = []

    @classmethod
    def of(cls, start: Snapshot | None) -> "LossLine":
        """Make a new line of losses, or the one that a snapshot holds."""
        return cls() if start is None else cls.from_state(start.note[NAME]["loss"])

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


def _curve(measurement: Measurement, start: Snapshot | None) -> Curve:
    """Return the curve of the fine-tuning; it begins with the perplexity that the model is known to have."""
    config, record = measurement.config, measurement.record
    found = record.result.perplexity
    before = found.get("end", found.get("dense"))
    new = {"dense": found.get("dense"), "points": [] if before is None else [[0, before]]}
    return Curve(
        record.folder,
        measure=measurement.perplexity if Stage.perplexity in config.stages else None,
        every=config.evaluate.every_tokens,
        on_point=lambda tokens, value: record.log_perplexity(tokens, value, f"{NAME}/perplexity"),
        start=new if start is None else start.note[NAME]["curve"],
        name=NAME,
    )


def _session(
    measurement: Measurement, tuned: TrainableModel, curve: Curve, losses: LossLine, resumption: Resumption
) -> LoopContext:
    """Make the context of the fine-tuning, as a distillation has one."""
    config, record = measurement.config, measurement.record

    def note() -> Mapping[str, Any]:
        return {**record.note(), **resumption.known, NAME: {"curve": curve.state(), "loss": losses.state()}}

    return LoopContext(
        measure=lambda tokens: curve.add_if_due(tuned, tokens),
        progress=config.progress,
        preemption=resumption.preemption,
        snapshots=None if config.snapshot.off else resumption.snapshots,
        start=resumption.start,
        note=note,
        fixed=as_parts(tuned.orders()),
        every_tokens=config.evaluate.every_tokens if Stage.perplexity in config.stages else 0,
        save_at_end=bool(set(config.stages) & set(MEASURES)),
    )


def _teller(record: Record, losses: LossLine) -> Callable[[Update], None]:
    """Tells the record and the losses of every update."""

    def on_update(update: Update) -> None:
        losses.add(update)
        speed = {"grad_norm": update.norm, "lr": update.lr, "tokens_per_second": update.tokens_per_second}
        record.log_update(update.tokens, {"loss": update.loss, **speed})

    return on_update
