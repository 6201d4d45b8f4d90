"""The checkpoint of a run: what it made, with the run's own figures on its card."""

import json
from collections.abc import Mapping
from typing import Any

from lillama.core.errors import ConfigError
from lillama.core.outputs import CHECKPOINT, PLAN
from lillama.core.results import read_json
from lillama.model.card import model_card, tuned_card
from lillama.model.checkpoint import save_checkpoint, save_loaded
from lillama.model.lowrank import LowRank
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from lillama.run.job import Job
from lillama.run.record import Record
from lillama.run.run import Run
from lillama.strategy.plan import RankPlan


def save(job: Job, plan: RankPlan, model: Any) -> None:
    """Write the checkpoint of a model that the run made smaller."""
    record = job.record
    record.claim(CHECKPOINT)
    save_checkpoint(
        model,
        job.supply.inputs.tokenizer,
        record.folder / CHECKPOINT,
        plan=plan.as_dict(),
        card=model_card(record.result.as_dict(), _auto(model)),
        without_bias=not job.run.config.init.keep_bias,
        overwrite=True,
    )
    _saved(record)


def plan_beside(run: Run) -> dict[str, Any] | None:
    """Read the plan that lies beside the weights of a compressed model; None where there is none.

    :raises ConfigError: for a file that holds no plan.
    """
    place = run.model.place
    if place is None or not (place / PLAN).is_file():
        return None
    try:
        plan = RankPlan.from_dict(read_json(place / PLAN)).as_dict()
        json.dumps(plan, allow_nan=False)  # as it is written again
        return plan
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"model.path={run.config.model.path}: its {PLAN} is damaged ({type(error).__name__}: {error}); remove it"
        ) from None


def save_tuned(job: Job, model: Any, plan: Mapping[str, Any] | None = None) -> None:
    """Write the checkpoint of a model that was fine-tuned as it came.

    :param plan: of a compressed one, as :func:`plan_beside` has read it before the work began.
    """
    record = job.record
    record.claim(CHECKPOINT)
    compressed = any(isinstance(module, LowRank) for module in model.modules())
    save_loaded(
        model,
        job.supply.inputs.tokenizer,
        record.folder / CHECKPOINT,
        plan=plan,
        card=tuned_card(record.result.as_dict(), _auto(model), compressed=compressed),
        overwrite=True,
    )
    _saved(record)


def _saved(record: Record) -> None:
    record.outputs.note_checkpoint()
    record.result.checkpoint = CHECKPOINT


def _auto(model: Any) -> str:
    return AUTO_CLASSES[task_of_architecture(model.config)].__name__
