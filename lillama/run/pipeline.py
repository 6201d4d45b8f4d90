"""One run, from a configuration to its result: one call a stage.

RunConfig -> plan -> (teacher, tokenizer, tokens) -> low-rank student -> distilled student and curve
          -> fine-tuned model and its curve -> checkpoint
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lillama.bench.stage import bench
from lillama.config import PLANNED, KfacRanksConfig, Objective, RunConfig, Stage
from lillama.core.errors import ConfigError
from lillama.core.outputs import BENCH_CHART, SCRATCH, Outputs
from lillama.core.preempt import Preemption, listening
from lillama.distill.parallel import Team, explained, team_of
from lillama.distill.progress import ORDERS
from lillama.evaluate.curve import Curve
from lillama.finetune import dense_teacher
from lillama.init import StartNotes, start_factors
from lillama.model.checkpoint import check_saveable, check_space
from lillama.model.load import resolve_device, show_progress
from lillama.model.student import Student
from lillama.model.surgery import blank_modules, take_orders
from lillama.run.distilling import distil, keep, make_curve
from lillama.run.fingerprint import run_fingerprint
from lillama.run.fits import check_memory
from lillama.run.folder import alone, check_inputs, disk_explained, finished, leave_word, made
from lillama.run.job import Job, Saves, note_of
from lillama.run.log_file import logged
from lillama.run.measure import COMPRESSED, Measurement, measure_beside, measure_checkpoint
from lillama.run.prepare import check_runnable, plan_shape, prepare_plan
from lillama.run.record import Start
from lillama.run.recording import following, recording
from lillama.run.saving import plan_beside, save, save_tuned
from lillama.run.supply import Supply
from lillama.run.tuning import tune
from lillama.strategy.forecast import forecast, predicted_loss_rise
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)


def run(config: RunConfig, folder: Path, overrides: Sequence[str] = (), *, wait: bool = False) -> dict[str, Any]:
    """Run the configured stages and return what ``results.json`` holds.

    A folder that already holds this run's result is left alone and its result returned; from a snapshot of this run it
    goes on. Under torchrun every process calls this; the first one keeps the records. What no run wrote is never
    removed, and nothing is before all checks have passed.

    :param overrides: what was said on the command line; kept with the result, so that a report can name the cell.
    :param wait: for another process that is at work in the folder; a sweep does.
    :raises ConfigError: for bad input, before a model is loaded, a folder in which another process is at work, or one
        that holds what a run would replace.
    :raises DivergedError: for a loss, a perplexity or a weight that is not finite.
    :raises Preempted: when the system asked the run to end.
    :raises WriteError: where the disk takes no more.
    """
    with listening() as preemption:
        show_progress(config.progress)
        check_inputs(config, made(folder))
        try:
            fingerprint = run_fingerprint(config)
            device = resolve_device(config.model)
        except ConfigError as error:  # a model or a text that is not there
            with suppress(ConfigError), alone(folder):
                leave_word(config, Outputs(folder), overrides, error)
            raise
        with team_of(config.parallel, device) as team:
            saves = Saves.of(config, folder, fingerprint, background=device.type == "cuda")
            if not team.main:
                return follow(config, folder, team, preemption, saves)
            with alone(folder, wait=wait), disk_explained(folder):
                return keep_records(
                    config, Outputs(folder), fingerprint, overrides, team=team, preemption=preemption, saves=saves
                )


def keep_records(
    config: RunConfig,
    outputs: Outputs,
    fingerprint: str,
    overrides: Sequence[str],
    *,
    team: Team,
    preemption: Preemption,
    saves: Saves,
) -> dict[str, Any]:
    """Run the stages in the process that writes to the folder, unless the folder holds their result."""
    previous = team.broadcast_object(finished(config, outputs, fingerprint))
    with outputs.settled(), logged(outputs):
        if previous is not None:
            outputs.finish()
            log.info("already done, nothing to run: %s", outputs.folder)
            return previous
        own = saves.distill.latest()
        others = saves.found() if own is None else None
        start = team.broadcast_object(own or others)
        tuned = saves.tuned(config, start)
        note = note_of(own, tuned)
        taken = others.note if others is not None and note is None else None
        begun = Start(config.logger, note, taken)
        with (
            recording(config, outputs, fingerprint, overrides, begun, preemption=preemption) as record,
            disk_explained(outputs.folder),
            explained(team),
        ):
            if others is not None:
                record.result.provenance["distilled_by"] = others.note["made"]
            run_stages(Job(config, record, team, preemption, saves, start, tuned))
            saves.close()
    return record.result.as_dict()


def follow(config: RunConfig, folder: Path, team: Team, preemption: Preemption, saves: Saves) -> dict[str, Any]:
    """Run the same stages on a process that keeps no records, without logging or writing."""
    previous = team.broadcast_object(None)
    if previous is not None:
        return previous
    start = team.broadcast_object(None)
    with following(config, folder) as record, explained(team):
        run_stages(Job(config, record, team, preemption, saves, start))
    return record.result.as_dict()


def run_stages(job: Job) -> None:
    """Make the plan, read the inputs, and then, with every check passed, do what the model is needed for."""
    config, record, plan = job.config, job.record, None
    supply = Supply(config, record)
    if set(PLANNED) & set(config.stages):
        with record.stage("plan"):
            plan = agreed_plan(job, supply)
    else:
        check_runnable(config)
        check_memory(config)
    if measures := bool(set(config.stages) - {Stage.plan, Stage.bench}):
        supply.inputs()
    known = plan_beside(config) if Stage.finetune in config.stages and Stage.init not in config.stages else None
    record.begin()
    if plan is not None:
        record.note_plan(plan)
    if measures:
        inputs = supply.inputs()
        torch.manual_seed(config.seed)
        if plan is not None and Stage.init in config.stages:
            compress(job, plan, supply)
        elif job.team.main:
            measurement = Measurement(config, record, inputs)
            tuning = partial(tune_loaded, job, measurement, known) if Stage.finetune in config.stages else None
            measure_checkpoint(measurement, plan, tuning)
    if Stage.bench in config.stages and job.team.main:
        assert plan is not None
        record.claim(SCRATCH, BENCH_CHART)
        with record.stage("bench"):
            record.result.bench = bench(config, plan, record.folder)


def agreed_plan(job: Job, supply: Supply) -> RankPlan:
    """Return the plan that every process goes by, and every part of a run that is cut short.

    One from spectra is made by the main process alone: theirs differ in the last bits from device to device.
    """
    config, folder = job.config, job.record.folder
    if job.start is not None and "plan" in job.start.note:  # older snapshots lack it
        return prepare_plan(config, folder, known=RankPlan.from_dict(job.start.note["plan"]))
    if not config.strategy.from_spectra:
        return prepare_plan(config, folder)
    return job.team.broadcast_object(planned_by_spectra(job, supply) if job.team.main else None)


def planned_by_spectra(job: Job, supply: Supply) -> RankPlan:
    """Return the plan of a strategy that looks at weights and tokens; one by the loss comes with its forecast."""
    config, folder, known = job.config, job.record.folder, dict[str, Sequence[float]]()

    def spectra(names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        known.update(supply.spectra(names))
        return known

    plan = prepare_plan(config, folder, spectra=spectra)
    if not isinstance(config.strategy, KfacRanksConfig) or supply.loss_spectra is None:
        return plan
    loss, tokens = supply.loss_spectra.loss, supply.loss_spectra.tokens
    job.record.note_forecast(forecast(plan_shape(config), config.strategy, known, loss=loss, tokens=tokens))
    return replace(plan, predicted_loss_rise=predicted_loss_rise(plan.ranks, known))


def compress(job: Job, plan: RankPlan, supply: Supply) -> None:
    """The model made smaller, measured, saved, measured as it is saved."""
    config, record = job.config, job.record
    inputs, teacher = supply.inputs(), supply.take_teacher()
    if config.save_checkpoint and job.team.main:
        check_saveable(teacher, inputs.tokenizer)
    measurement = Measurement(config, record, inputs)
    curve = make_curve(job, measurement)
    if job.note is None:
        curve.add_dense(teacher)
    with record.stage("init"):
        student, plan = first_student(job, teacher, plan, supply)
    if job.note is None:
        curve.add(student, tokens=0)
    if Stage.distill in config.stages:
        with record.stage("distill"):
            distil(job, plan, inputs, student, curve)
        if job.team.main and job.saves.kept is not None:
            keep(job, job.saves.kept)
    curve.add(student, record.result.tokens)
    curve.draw(title=f"{config.model.name}, {plan.realised:.1%} smaller")
    student.check_finite()
    record.note_curve(curve.figures, curve.points, inputs.text)
    if job.team.main:
        finish(job, measurement, plan, student, curve)


def finish(job: Job, measurement: Measurement, plan: RankPlan, student: Student, curve: Curve) -> None:
    """Finish on one process: measures beside the dense model, fine-tuning, the checkpoint, its measures."""
    config, record = measurement.config, measurement.record
    measure_beside(measurement, student)
    compressed = settled(job, measurement, student, curve)
    if config.save_checkpoint:
        with record.stage("save"):
            save(config, plan, measurement.inputs, compressed, record)
    measurement.each(compressed, COMPRESSED)


def settled(job: Job, measurement: Measurement, student: Student, curve: Curve) -> nn.Module:
    """Settle the student and fine-tune it where that is a stage of the run; nothing is left of the dense model."""
    config = job.config
    if Stage.finetune not in config.stages:
        return student.settle()
    teacher = dense_teacher(student) if config.finetune.objective is Objective.kl else None
    return tune(measurement, student.settle(), job.resumption(curve=curve.state()), teacher)


def tune_loaded(
    job: Job, measurement: Measurement, plan: Mapping[str, Any] | None, model: nn.Module, teacher: nn.Module | None
) -> nn.Module:
    """Fine-tune a model as it came, dense or compressed, and save it.

    :param plan: of a compressed one. :param teacher: the dense model beside it.
    """
    config, record = job.config, job.record
    if config.save_checkpoint:
        check_saveable(model, measurement.inputs.tokenizer)
        check_space(record.folder, sum(p.numel() for p in model.parameters()), next(model.parameters()).dtype)
    tuned = tune(measurement, model, job.resumption(), teacher)
    if config.save_checkpoint:
        with record.stage("save"):
            save_tuned(config, measurement.inputs, tuned, record, plan)
    return tuned


def first_student(job: Job, teacher: nn.Module, plan: RankPlan, supply: Supply) -> tuple[Student, RankPlan]:
    """Return the student before it learns, and the plan with what its start predicts.

    The factors are still blank where a snapshot will fill them.

    The main process of a team makes the factors for all.
    """
    config = job.config
    ranks, form = plan.ranks, plan.factors
    if job.start is None and job.team.main:
        data, known = supply.inputs().data, supply.factors(teacher)
        notes = StartNotes()
        options: dict[str, Any] = {"form": form, "cache": known, "progress": config.progress, "notes": notes}
        made = start_factors(teacher, ranks, data, config.init, **options)
        if notes.predicted_loss_rise is not None:
            plan = replace(plan, predicted_loss_rise=notes.predicted_loss_rise)
            job.record.note_plan(plan)
    else:
        made = blank_modules(teacher, ranks, form, keep_bias=config.init.keep_bias)
    student = Student(teacher, made)
    if job.start is None:
        job.team.broadcast_tensors([*student.factor_parameters(), *student.orders().values()])
    elif orders := student.orders():
        take_orders(orders, job.start.part(ORDERS))
    return student, plan
