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
from lillama.config import PLANNED, Objective, RunConfig, Stage
from lillama.core.errors import ConfigError
from lillama.core.outputs import BENCH_CHART, SCRATCH, Outputs
from lillama.core.preempt import Preemption, listening
from lillama.distill.parallel import Team, explained, team_of
from lillama.distill.progress import ORDERS
from lillama.evaluate.curve import Curve
from lillama.finetune import dense_teacher
from lillama.init import StartNotes, start_factors
from lillama.model.checkpoint import check_saveable, check_space
from lillama.model.source import show_progress
from lillama.model.student import Student
from lillama.model.surgery import blank_modules, take_orders
from lillama.run.checks import check_runnable
from lillama.run.distilling import distil, keep, make_curve
from lillama.run.fingerprint import run_fingerprint
from lillama.run.fits import check_memory
from lillama.run.folder import alone, check_inputs, disk_explained, finished, leave_word, made
from lillama.run.job import Job
from lillama.run.log_file import logged
from lillama.run.measure import COMPRESSED, measure_beside, measure_checkpoint, measure_each
from lillama.run.planning import agreed_plan
from lillama.run.record import Start
from lillama.run.recording import following, recording
from lillama.run.resume import Resume
from lillama.run.run import Run
from lillama.run.saving import plan_beside, save, save_tuned
from lillama.run.supply import Supply
from lillama.run.tuning import tune
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    choices: Mapping[str, str] | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Run the configured stages and return what ``results.json`` holds.

    A folder that already holds this run's result is left alone and its result returned; from a snapshot of this run it
    goes on. Under torchrun every process calls this; the first one keeps the records. What no run wrote is never
    removed, and nothing is before all checks have passed.

    :param overrides, choices: what was said on the command line, and the option chosen of every group.
    :param wait: for another process that is at work in the folder; a sweep does.
    :raises ConfigError: for bad input, before a model is loaded, a folder in which another process is at work, or one
        that holds what a run would replace.
    :raises DivergedError: for a loss, a perplexity or a weight that is not finite.
    :raises Preempted: when the system asked the run to end.
    :raises WriteError: where the disk takes no more.
    """
    this = Run.of(config, overrides, choices)
    with listening() as preemption:
        show_progress(config.progress)
        check_inputs(config, made(folder))
        try:
            fingerprint = run_fingerprint(this)
            device = this.model.device
        except ConfigError as error:  # a model or a text that is not there
            with suppress(ConfigError), alone(folder):
                leave_word(this, Outputs(folder), error)
            raise
        with team_of(config.parallel, device) as team:
            resume = Resume.of(this, folder, fingerprint, background=device.type == "cuda")
            if not team.main:
                return follow(this, folder, team, preemption, resume)
            with alone(folder, wait=wait), disk_explained(folder):
                return keep_records(this, Outputs(folder), fingerprint, team=team, preemption=preemption, resume=resume)


def keep_records(
    this: Run,
    outputs: Outputs,
    fingerprint: str,
    *,
    team: Team,
    preemption: Preemption,
    resume: Resume,
) -> dict[str, Any]:
    """Run the stages in the process that writes to the folder, unless the folder holds their result."""
    config = this.config
    previous = team.broadcast_object(finished(config, outputs, fingerprint))
    with outputs.settled(), logged(outputs):
        if previous is not None:
            outputs.finish()
            log.info("already done, nothing to run: %s", outputs.folder)
            return previous
        resume.find()
        team.broadcast_object(resume.distilled)
        borrowed = resume.borrowed_note
        begun = Start(config.logger, resume.own_note, borrowed if resume.own_note is None else None)
        with (
            recording(this, outputs, fingerprint, begun, preemption=preemption) as record,
            disk_explained(outputs.folder),
            explained(team),
        ):
            if borrowed is not None:
                record.result.provenance["distilled_by"] = borrowed["made"]
            run_stages(Job(this, record, Supply(this, record), team, preemption, resume))
            resume.close()
    return record.result.as_dict()


def follow(this: Run, folder: Path, team: Team, preemption: Preemption, resume: Resume) -> dict[str, Any]:
    """Run the same stages on a process that keeps no records, without logging or writing."""
    previous = team.broadcast_object(None)
    if previous is not None:
        return previous
    resume.distilled = team.broadcast_object(None)
    with following(this.config, folder) as record, explained(team):
        run_stages(Job(this, record, Supply(this, record), team, preemption, resume))
    return record.result.as_dict()


def run_stages(job: Job) -> None:
    """Make the plan, read the inputs, and then, with every check passed, do what the model is needed for."""
    config, stages, record, plan = job.run.config, job.run.stages, job.record, None
    if stages & set(PLANNED):
        with record.stage("plan"):
            plan = agreed_plan(job)
    else:
        check_runnable(job.run)
        check_memory(job.run)
    if measures := bool(stages - {Stage.plan, Stage.bench}):
        job.supply.read_inputs()
    known = plan_beside(job.run) if Stage.finetune in stages and Stage.init not in stages else None
    record.begin()
    if plan is not None:
        record.note_plan(plan)
    if measures:
        torch.manual_seed(config.seed)
        if plan is not None and Stage.init in stages:
            compress(job, plan)
        elif job.team.main:
            measure_checkpoint(job, plan, partial(tune_loaded, job, known) if Stage.finetune in stages else None)
    if plan is not None and Stage.bench in stages and job.team.main:
        record.claim(SCRATCH, BENCH_CHART)
        with record.stage("bench"):
            record.result.bench = bench(config, job.run.model, plan, record.folder)


def compress(job: Job, plan: RankPlan) -> None:
    """The model made smaller, measured, saved, measured as it is saved."""
    config, record, inputs = job.run.config, job.record, job.supply.inputs
    teacher = job.supply.take_teacher()
    if config.save_checkpoint and job.team.main:
        check_saveable(teacher, inputs.tokenizer)
    curve, begins = make_curve(job), job.resume.note is None
    if begins:
        curve.add_dense(teacher)
    with record.stage("init"):
        student, plan = first_student(job, teacher, plan)
    if begins:
        curve.add(student, tokens=0)
    if Stage.distill in config.stages:
        with record.stage("distill"):
            distil(job, plan, student, curve)
        if job.team.main and job.resume.kept is not None:
            keep(job, job.resume.kept)
    curve.add(student, record.result.tokens)
    curve.draw(title=f"{config.model.name}, {plan.realised:.1%} smaller")
    student.check_finite()
    record.note_curve(curve.figures, curve.points, inputs.text if curve.figures else None)
    if job.team.main:
        finish(job, plan, student, curve)


def finish(job: Job, plan: RankPlan, student: Student, curve: Curve) -> None:
    """Finish on one process: measures beside the dense model, fine-tuning, the checkpoint, its measures."""
    measure_beside(job, student)
    compressed = settled(job, student, curve)
    if job.run.config.save_checkpoint:
        with job.record.stage("save"):
            save(job, plan, compressed)
    measure_each(job, compressed, COMPRESSED)


def settled(job: Job, student: Student, curve: Curve) -> nn.Module:
    """Settle the student and fine-tune it where that is a stage of the run; nothing is left of the dense model."""
    if Stage.finetune not in job.run.stages:
        return student.settle()
    teacher = dense_teacher(student) if job.run.config.finetune.objective is Objective.kl else None
    return tune(job, student.settle(), teacher, known={"curve": curve.state()})


def tune_loaded(job: Job, plan: Mapping[str, Any] | None, model: nn.Module, teacher: nn.Module | None) -> nn.Module:
    """Fine-tune a model as it came, dense or compressed, and save it.

    :param plan: of a compressed one. :param teacher: the dense model beside it.
    """
    saves, record = job.run.config.save_checkpoint, job.record
    if saves:
        check_saveable(model, job.supply.inputs.tokenizer)
        check_space(record.folder, sum(p.numel() for p in model.parameters()), next(model.parameters()).dtype)
    tuned = tune(job, model, teacher)
    if saves:
        with record.stage("save"):
            save_tuned(job, tuned, plan)
    return tuned


def first_student(job: Job, teacher: nn.Module, plan: RankPlan) -> tuple[Student, RankPlan]:
    """Return the student before it learns, and the plan with what its start predicts.

    The factors are still blank where a snapshot will fill them.

    The main process of a team makes the factors for all.
    """
    config, start = job.run.config, job.resume.distilled
    ranks, form = plan.ranks, plan.factors
    if start is None and job.team.main:
        known = job.supply.factors(teacher)
        data = job.supply.inputs.calibration if config.calibrates else None
        notes = StartNotes()
        options: dict[str, Any] = {"form": form, "cache": known, "progress": config.progress, "notes": notes}
        made = start_factors(teacher, ranks, data, config.init, **options)
        if notes.predicted_loss_rise is not None:
            plan = replace(plan, predicted_loss_rise=notes.predicted_loss_rise)
            job.record.note_plan(plan)
    else:
        made = blank_modules(teacher, ranks, form, keep_bias=config.init.keep_bias)
    student = Student(teacher, made)
    if start is None:
        job.team.broadcast_tensors([*student.factor_parameters(), *student.orders().values()])
    elif orders := student.orders():
        take_orders(orders, start.part(ORDERS))
    return student, plan
