"""The stages after the making: what is measured of a model, and of the dense one beside it."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from lillama.config import Objective, Stage, Weights
from lillama.evaluate.domains import loss_rise
from lillama.evaluate.throughput import throughput
from lillama.evaluate.variants import COMPRESSED, DENSE, Variant, model_variants, random_variants, student_variants
from lillama.model.lowrank import LowRank
from lillama.model.student import Student, random_student
from lillama.run.job import Job
from lillama.strategy.plan import RankPlan

SPEED_ONLY = {Stage.plan, Stage.throughput}
ROLE_IN_CURVE = {DENSE: "dense", COMPRESSED: "end"}
Tune = Callable[[nn.Module, nn.Module | None], nn.Module]


def measure_each(job: Job, model: nn.Module, role: str) -> None:
    """Make every configured measure of one model by itself."""
    config, record = job.run.config, job.record
    for stage, measure in job.supply.inputs.measures.items():
        with record.stage(stage.name):
            known = record.result.measured.get(stage.name, {})
            dense = known.get(DENSE) if role == COMPRESSED else None
            note = partial(record.note_measured, stage.name, role)
            figures = measure.measure(model, dense=dense, note=note)
            if measure.CHART is not None:
                record.claim(measure.CHART)
                file = record.folder / measure.CHART
                measure.draw({**known, role: figures}, file, title=config.model.name)
            note(figures)
    if role == COMPRESSED and not {Stage.distill, Stage.finetune} & job.run.stages:
        _note_rise(job)


def _note_rise(job: Job) -> None:
    """Note by how much the start's loss is above the dense model's, where both were measured on texts."""
    found = job.record.result.measured.get(Stage.domains.name, {})
    if DENSE in found and COMPRESSED in found:
        job.record.note_rise(loss_rise(found[DENSE], found[COMPRESSED]))


def measure_in_turn(job: Job, variants: Sequence[Variant]) -> None:
    """Measure speed and memory: of all variants in turn."""
    if Stage.throughput not in job.run.stages:
        return
    config, record = job.run.config, job.record
    with record.stage(Stage.throughput.name):
        ids = job.supply.inputs.text.ids
        found = throughput(variants, ids, config.evaluate.throughput, progress=config.progress)
    for role, figures in found.items():
        record.note_measured(Stage.throughput.name, role, figures)


def measure_beside(job: Job, student: Student) -> None:
    """Measure before the student settles: both models in turn, then the dense model alone."""
    dense = job.run.config.evaluate.dense
    measure_in_turn(job, [variant for variant in student_variants(student) if dense or variant.role != DENSE])
    if dense:
        measure_each(job, student.teacher, DENSE)


def measure_checkpoint(job: Job, plan: RankPlan | None, finetune: Tune | None = None) -> None:
    """Measure without compressing: the configured model, and a dense one beside it where one is given.

    With a plan and no weights to start it from, speed and memory are those of random factors.

    :param finetune: makes the configured model, beside the baseline, the one that is measured after its perplexity.
    :raises ConfigError: for a model that cannot be loaded.
    """
    run, record = job.run, job.record
    if run.config.model.weights is Weights.random and plan is not None and run.stages <= SPEED_ONLY:
        measure_in_turn(job, random_variants(run.model, plan.ranks, plan.factors))
        return
    models = _models(job)
    teacher = models.get(DENSE) if COMPRESSED in models else None
    if not run.config.evaluate.dense and teacher is not None:
        del models[DENSE]  # it is there to learn from, not to be measured
    record.note_models({role: sum(p.numel() for p in model.parameters()) for role, model in models.items()})
    if Stage.perplexity in run.stages:
        points = {ROLE_IN_CURVE[role]: job.perplexity(model) for role, model in models.items()}
        record.note_curve(points, [], job.supply.inputs.text)
    if finetune is not None:
        own = COMPRESSED if COMPRESSED in models else DENSE
        models[own] = finetune(models[own], teacher)
    if plan is not None and Stage.throughput in run.stages:
        measure_in_turn(job, student_variants(random_student(models[DENSE], plan.ranks, plan.factors)))
    else:
        measure_in_turn(job, model_variants(models))
    for role, model in models.items():
        measure_each(job, model, role)


def _models(job: Job) -> dict[str, nn.Module]:
    """Return the configured model by its role, and the baseline."""
    run, load = job.run, job.supply.load
    model = load(run.model)
    if run.baseline is None or not (run.config.evaluate.dense or _learns_from_baseline(job)):
        return {COMPRESSED if any(isinstance(module, LowRank) for module in model.modules()) else DENSE: model}
    return {DENSE: load(run.baseline), COMPRESSED: model}


def _learns_from_baseline(job: Job) -> bool:
    return Stage.finetune in job.run.stages and job.run.config.finetune.objective is Objective.kl
