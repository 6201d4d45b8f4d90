"""The stage ``finetune`` of a run: its clock, its curve, its losses, its snapshots."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lillama.config import MEASURES, Stage
from lillama.core.outputs import TUNING_CURVE, TUNING_SNAPSHOTS
from lillama.data.calibration import described
from lillama.distill.progress import LoopContext, as_parts
from lillama.distill.snapshot import Snapshot
from lillama.evaluate.curve import Curve
from lillama.finetune import TrainableModel, Update, fine_tune
from lillama.model.blocks import Blocks
from lillama.model.offload import onloaded
from lillama.run.job import Job
from lillama.run.loss_line import LossLine
from lillama.run.record import Record

NAME = Stage.finetune.name


def tune(
    job: Job, model: nn.Module, teacher: nn.Module | None = None, *, known: Mapping[str, Any] | None = None
) -> nn.Module:
    """Fine-tune a model, and note what it was and the perplexity after it; the model, in evaluation mode.

    :param teacher: the dense model, where its logits are what is learnt.
    :param known: what every snapshot keeps beside the fine-tuning's own: the curve of the distillation before it.
    :raises DivergedError: for a loss or a weight that is not finite.
    """
    config, record, inputs, start = job.run.config, job.record, job.supply.inputs, job.resume.tuned
    blocks = Blocks(model)
    record.claim(TUNING_SNAPSHOTS, *TUNING_CURVE)
    with record.stage(NAME), onloaded([blocks[index] for index in range(len(blocks))]):
        torch.manual_seed(config.seed)
        tuned = TrainableModel(model, config.finetune)
        losses, curve = LossLine.of(start), _curve(job, start)
        if start is None:
            curve.add(tuned, tokens=0)
        context = _context(job, tuned, curve, losses, known or {})
        fine_tune(tuned, inputs.tuning, config.finetune, context, _teller(record, losses), teacher=teacher)
        curve.add(tuned, losses.tokens)
        learnt = sum(parameter.numel() for parameter in tuned.learning.values())
        settled = tuned.settle()
    curve.draw(title=f"{config.model.name}, fine-tuned")
    made = {"objective": config.finetune.objective.name, **losses.figures(), "parameters": learnt}
    figures = {**made, "curve": curve.points, "data": described(inputs.tuning)}
    record.note_finetune(figures)
    if curve.points:
        record.note_tuned(curve.points[-1][1], inputs.text)
    return settled


def _curve(job: Job, start: Snapshot | None) -> Curve:
    """Return the curve of the fine-tuning; it begins with the perplexity that the model is known to have."""
    config, record = job.run.config, job.record
    found = record.result.perplexity
    before = found.get("end", found.get("dense"))
    new = {"dense": found.get("dense"), "points": [] if before is None else [[0, before]]}
    return Curve(
        record.folder,
        measure=job.perplexity if Stage.perplexity in config.stages else None,
        every=config.evaluate.every_tokens,
        on_point=lambda tokens, value: record.log_perplexity(tokens, value, f"{NAME}/perplexity"),
        start=new if start is None else start.note[NAME]["curve"],
        name=NAME,
    )


def _context(job: Job, tuned: TrainableModel, curve: Curve, losses: LossLine, known: Mapping[str, Any]) -> LoopContext:
    """Make the context of the fine-tuning, as a distillation has one."""
    config, record = job.run.config, job.record

    def note() -> Mapping[str, Any]:
        return {**record.note(), **known, NAME: {"curve": curve.state(), "loss": losses.state()}}

    return LoopContext(
        measure=lambda tokens: curve.add_if_due(tuned, tokens),
        progress=config.progress,
        preemption=job.preemption,
        snapshots=None if config.snapshot.off else job.resume.tuning,
        start=job.resume.tuned,
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
