"""The stage ``plan`` of a run: every matrix's rank, and whether the request can be carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lillama.config import KfacRanksConfig, Stage
from lillama.model.checkpoint import check_space
from lillama.model.limits import model_limits
from lillama.run.checks import check_runnable, check_sequences, check_table
from lillama.run.fits import check_memory
from lillama.run.job import Job
from lillama.run.run import Run
from lillama.strategy import make_plan
from lillama.strategy.forecast import forecast, predicted_loss_rise
from lillama.strategy.plan import RankPlan


def agreed_plan(job: Job) -> RankPlan:
    """Return the plan that every process goes by, and every part of a run that is cut short.

    One from spectra is made by the main process alone: theirs differ in the last bits from device to device.

    :raises ConfigError: for a request out of reach, stages or data that do not suit the model, or a full disk.
    """
    check_plannable(job.run)
    plan = _made(job)
    if Stage.init in job.run.stages and job.run.config.save_checkpoint:
        check_space(job.record.folder, plan.parameters, job.run.model.dtype)
    return plan


def check_plannable(run: Run) -> None:
    """Raise a :class:`ConfigError` for stages, data or a machine that do not suit the model."""
    run.model.check_dense()
    shape = run.shape
    if run.stages != {Stage.plan} or run.config.calibrates:
        check_runnable(run)
        check_sequences(run, model_limits(run.model.meta))
        check_memory(run)
        check_table(run, shape)


def _made(job: Job) -> RankPlan:
    run, resumed = job.run, job.resume.distilled
    if resumed is not None and "plan" in resumed.note:  # older snapshots lack it
        return RankPlan.from_dict(resumed.note["plan"])
    if not run.config.strategy.from_spectra:
        return make_plan(run.shape, run.config.strategy)
    return job.team.broadcast_object(_made_by_spectra(job) if job.team.main else None)


def _made_by_spectra(job: Job) -> RankPlan:
    """Make the plan of a strategy that looks at weights and tokens; one by the loss comes with its forecast."""
    shape, strategy, known = job.run.shape, job.run.config.strategy, dict[str, Sequence[float]]()

    def spectra(names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        known.update(job.supply.spectra(names))
        return known

    plan, found = make_plan(shape, strategy, spectra), job.supply.loss_spectra
    if not isinstance(strategy, KfacRanksConfig) or found is None:
        return plan
    job.record.note_forecast(forecast(shape, strategy, known, loss=found.loss, tokens=found.tokens))
    return replace(plan, predicted_loss_rise=predicted_loss_rise(plan.ranks, known))
