"""All that a run needs but the model, made first: whatever can be wrong with a request shows here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lillama.config import Dtype, FeatureConfig, RunConfig, Stage
from lillama.data.tokens import TokenBlocks, token_blocks
from lillama.errors import ConfigError
from lillama.evaluate.perplexity import perplexity_ids
from lillama.model.checkpoint import check_space
from lillama.model.load import load_tokenizer, meta_model, resolve_device, resolve_dtype
from lillama.model.targets import ModelShape, model_shape
from lillama.strategy import make_plan
from lillama.strategy.plan import RankPlan


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tokenizer, the calibration tokens and the text of the curve; None where no stage needs them."""

    tokenizer: Any
    data: TokenBlocks | None
    text: Tensor | None


def prepare_plan(config: RunConfig, folder: Path) -> RankPlan:
    """The plan, from shapes alone; with the checks of whether it can be carried out.

    :raises ConfigError: for a request out of reach, a model that can only be planned, or a full disk.
    """
    resolve_device(config.model)
    shape = model_shape(meta_model(config.model, cache_of(config)))
    plan = make_plan(shape, config.strategy)
    if Stage.init in config.stages:
        _check_runnable(config, shape, plan)
        if config.save_checkpoint:
            check_space(folder, plan.parameters, resolve_dtype(config.model))
    return plan


def prepare_inputs(config: RunConfig) -> Inputs:
    """Tokenizer and tokens.

    :raises ConfigError: for texts that are missing, unreadable or too small.
    """
    tokenizer = load_tokenizer(config.model, cache_of(config))
    feature = Stage.init in config.stages and isinstance(config.init, FeatureConfig)
    needs_data = feature or Stage.distill in config.stages
    return Inputs(
        tokenizer=tokenizer,
        data=token_blocks(config.data, tokenizer, cache_of(config)) if needs_data else None,
        text=perplexity_ids(config.evaluate.perplexity, tokenizer) if Stage.perplexity in config.stages else None,
    )


def cache_of(config: RunConfig) -> Path:
    """Where imports and tokens are kept between runs."""
    return Path(config.cache_dir).expanduser()


def _check_runnable(config: RunConfig, shape: ModelShape, plan: RankPlan) -> None:
    fused = [target.name for target in shape.targets if target.copies > 1 and target.name in plan.ranks]
    if fused:
        raise ConfigError(f"model={config.model.name}: fused experts ({fused[0]}) can be planned, not yet compressed")
    if config.model.dtype is Dtype.float16 and Stage.distill in config.stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")
