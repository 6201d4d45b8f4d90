"""The stage ``distill`` of a run: its curve, what a snapshot keeps beside the factors, what other runs may take."""

from collections.abc import Mapping
from typing import Any

from lillama.config import MEASURES, Stage
from lillama.core.outputs import CURVE, SCRATCH, SNAPSHOTS
from lillama.distill import LoopContext, Progress, distill
from lillama.distill.progress import as_parts
from lillama.evaluate.curve import Curve
from lillama.model.student import Student
from lillama.run.job import Job
from lillama.run.reuse import Kept
from lillama.strategy.plan import RankPlan


def make_curve(job: Job) -> Curve:
    """Return the curve of a run, on its own clock; it measures nothing where perplexity is no stage of the run."""
    record, note = job.record, job.resume.note
    wanted = Stage.perplexity in job.run.stages and job.team.main
    record.claim(*CURVE)
    return Curve(
        record.folder,
        measure=job.perplexity if wanted else None,
        every=job.run.config.evaluate.every_tokens,
        on_point=record.log_perplexity,
        start=None if note is None or not job.team.main else note["curve"],
    )


def distil(job: Job, plan: RankPlan, student: Student, curve: Curve) -> None:
    """Distil the student, telling the record and the curve of every step."""
    config, record = job.run.config, job.record
    record.claim(SNAPSHOTS, SCRATCH)

    def on_step(progress: Progress) -> None:
        record.log_step(progress.tokens, step_metrics(progress))

    def note() -> Mapping[str, Any]:
        return {**record.note(), "curve": curve.state(), "plan": plan.as_dict()}

    context = LoopContext(
        on_step=on_step,
        measure=lambda tokens: curve.add_if_due(student, tokens),
        progress=config.progress and job.team.main,
        team=job.team,
        preemption=job.preemption,
        snapshots=None if config.snapshot.off else job.resume.distilling,
        start=job.resume.distilled,
        note=note,
        fixed=as_parts(student.orders()),
        scratch=record.folder / SCRATCH / str(job.team.rank),
        every_tokens=config.evaluate.every_tokens if Stage.perplexity in config.stages else 0,
        save_at_end=job.resume.kept is not None or bool(set(config.stages) & {*MEASURES, Stage.finetune}),
    )
    distill(student, job.supply.inputs.calibration, config.distill, config.loss, context)


def keep(job: Job, kept: Kept) -> None:
    """Keep the distillation for other runs; the time of it is not the distillation's."""
    with job.record.stage("save"):
        made = job.resume.distilling.newest()
        if made is not None:  # none where this run has taken another's
            kept.keep(made, job.record.result.provenance)


def step_metrics(progress: Progress) -> dict[str, float]:
    """List the metrics of a step for a logger."""
    metrics = {f"loss/block_{index:03d}": loss for index, loss in progress.losses.items()}
    return metrics | {"loss/mean": progress.loss, "lr": progress.lr, "tokens_per_second": progress.tokens_per_second}
