"""One run, from a configuration to its result: one call a stage.

RunConfig -> plan -> (teacher, tokenizer, tokens) -> low-rank student -> distilled student and curve -> checkpoint
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lillama.config import RunConfig, Stage
from lillama.distill.joint import Progress, distill
from lillama.errors import ConfigError
from lillama.evaluate.curve import Curve
from lillama.evaluate.perplexity import perplexity
from lillama.fingerprint import run_fingerprint
from lillama.init import factor_cache, start_factors
from lillama.model.card import model_card
from lillama.model.checkpoint import save_checkpoint
from lillama.model.load import load_model, show_progress
from lillama.model.student import Student
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from lillama.prepare import Inputs, cache_of, kept, prepare_inputs, prepare_plan
from lillama.record import CHECKPOINT, Record, alone, finished, recording, refuse
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)


def run(config: RunConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run the configured stages and return what ``results.json`` holds.

    A folder that already holds this run's result is left alone and its result returned.

    :param overrides: what was said on the command line; kept with the result, so that a report can name the cell.
    :raises ConfigError: for bad input, before a model is loaded, or a folder in which another process is at work.
    :raises DivergedError: for a loss, a perplexity or a weight that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    show_progress(config.progress)
    try:
        fingerprint = run_fingerprint(config)
    except ConfigError as error:  # a model or a text that is not there
        refuse(config, folder, overrides, error)
        raise
    with alone(folder):
        previous = finished(config, folder, fingerprint)
        if previous is not None:
            log.info("already done, nothing to run: %s", folder)
            return previous
        with recording(config, folder, fingerprint, overrides) as record:
            run_stages(config, folder, record)
    return record.result.as_dict()


def run_stages(config: RunConfig, folder: Path, record: Record) -> None:
    """The plan first, then what the model is needed for."""
    with record.stage("plan"):
        plan = prepare_plan(config, folder)
    record.note_plan(plan)
    if set(config.stages) != {Stage.plan}:
        with record.stage("data"):
            inputs = prepare_inputs(config)
        record.note_data(inputs.data, inputs.text)
        compress(config, plan, inputs, record)


def compress(config: RunConfig, plan: RankPlan, inputs: Inputs, record: Record) -> None:
    """Every stage that needs the model."""
    torch.manual_seed(config.seed)
    with record.stage("load"):
        teacher = load_model(config.model, cache_of(config), seed=config.seed)
    curve = make_curve(config, inputs, record)
    curve.add_dense(teacher)
    if Stage.init in config.stages:
        with record.stage("init"):
            known = factor_cache(kept(config), config.model, teacher, seed=config.seed)
            factors = start_factors(
                teacher, plan.ranks, inputs.data, config.init, cache=known, progress=config.progress
            )
            student = Student(teacher, factors)
        curve.add(student, tokens=0)
        if Stage.distill in config.stages:
            with record.stage("distill"):
                distil(config, inputs, student, curve, record)
        curve.add(student, record.result.tokens)
        curve.draw(title=f"{config.model.name}, {plan.realised:.1%} smaller")
        student.check_finite()
    record.note_curve(curve.figures, curve.points)
    if Stage.init in config.stages and config.save_checkpoint:
        with record.stage("save"):
            save(config, plan, inputs, student.settle(), record)


def make_curve(config: RunConfig, inputs: Inputs, record: Record) -> Curve:
    """The curve of a run, on its own clock; it measures nothing where perplexity is no stage of the run."""
    settings, text = config.evaluate.perplexity, inputs.text

    def measure(model: nn.Module) -> float:
        assert text is not None
        with record.stage("perplexity"):
            return perplexity(
                model, text, seq_len=settings.seq_len, batch_size=settings.batch_size, progress=config.progress
            )

    return Curve(
        record.folder,
        measure=None if text is None else measure,
        every=config.evaluate.every_tokens,
        on_point=record.log_perplexity,
    )


def distil(config: RunConfig, inputs: Inputs, student: Student, curve: Curve, record: Record) -> None:
    """Distil the student, telling the record and the curve of every step."""
    assert inputs.data is not None

    def on_step(progress: Progress) -> None:
        record.log_step(progress.tokens, step_metrics(progress))
        curve.add_if_due(student, progress.tokens)

    distill(student, inputs.data, config.distill, config.loss, on_step=on_step, progress=config.progress)


def step_metrics(progress: Progress) -> dict[str, float]:
    """What a logger hears of a step."""
    metrics = {f"loss/block_{index:03d}": loss for index, loss in progress.losses.items()}
    return metrics | {"loss/mean": progress.loss, "lr": progress.lr, "tokens_per_second": progress.tokens_per_second}


def save(config: RunConfig, plan: RankPlan, inputs: Inputs, model: Any, record: Record) -> None:
    """Write the checkpoint, with the run's own figures on its card."""
    save_checkpoint(
        model,
        inputs.tokenizer,
        record.folder / CHECKPOINT,
        plan=plan.as_dict(),
        card=model_card(record.result.as_dict(), AUTO_CLASSES[task_of_architecture(model.config)].__name__),
        without_bias=not config.init.keep_bias,
    )
    record.result.checkpoint = CHECKPOINT
