"""The checkpoint of a run: what it made, with the run's own figures on its card."""

from pathlib import Path
from typing import Any

from lillama.config import RunConfig
from lillama.model.card import model_card, tuned_card
from lillama.model.checkpoint import save_checkpoint, save_loaded
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from lillama.prepare import Inputs
from lillama.record import CHECKPOINT, Record
from lillama.results import read_json
from lillama.runtime import LowRank
from lillama.strategy.plan import RankPlan


def save(config: RunConfig, plan: RankPlan, inputs: Inputs, model: Any, record: Record) -> None:
    """Write the checkpoint of a model that the run made smaller."""
    save_checkpoint(
        model,
        inputs.tokenizer,
        record.folder / CHECKPOINT,
        plan=plan.as_dict(),
        card=model_card(record.result.as_dict(), _auto(model)),
        without_bias=not config.init.keep_bias,
    )
    record.result.checkpoint = CHECKPOINT


def save_tuned(config: RunConfig, inputs: Inputs, model: Any, record: Record) -> None:
    """Write the checkpoint of a model that was fine-tuned as it came; the plan of a compressed one goes with it."""
    plan = Path(str(config.model.path)).expanduser() / "plan.json"
    compressed = any(isinstance(module, LowRank) for module in model.modules())
    save_loaded(
        model,
        inputs.tokenizer,
        record.folder / CHECKPOINT,
        plan=read_json(plan) if plan.is_file() else None,
        card=tuned_card(record.result.as_dict(), _auto(model), compressed=compressed),
    )
    record.result.checkpoint = CHECKPOINT


def _auto(model: Any) -> str:
    return AUTO_CLASSES[task_of_architecture(model.config)].__name__
