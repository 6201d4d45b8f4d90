"""All that a run needs but the model, made first: whatever can be wrong with a request shows here."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lillama.cache import Cache
from lillama.config import Dtype, FeatureConfig, Moments, RunConfig, Source, Stage, Task
from lillama.data.calibration import Calibration
from lillama.data.speech import speech_clips
from lillama.data.tokens import token_blocks
from lillama.errors import ConfigError
from lillama.evaluate.perplexity import perplexity_ids
from lillama.model.checkpoint import check_space
from lillama.model.load import check_dense, load_tokenizer, meta_model, model_task, resolve_device, resolve_dtype
from lillama.model.targets import model_shape
from lillama.strategy import make_plan
from lillama.strategy.plan import RankPlan


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tokenizer, the calibration tokens and the text of the curve; None where no stage needs them."""

    tokenizer: Any
    data: Calibration | None
    text: Tensor | None


def prepare_plan(config: RunConfig, folder: Path) -> RankPlan:
    """The plan, from shapes alone; with the checks of whether it can be carried out.

    :raises ConfigError: for a request out of reach, stages or data that do not suit the model, or a full disk.
    """
    resolve_device(config.model)
    if Stage.init in config.stages:
        check_dense(config.model, cache_of(config))
    plan = make_plan(model_shape(meta_model(config.model, cache_of(config)), config.model.targets), config.strategy)
    if set(config.stages) != {Stage.plan}:
        _check_runnable(config, model_task(config.model, cache_of(config)))
    if Stage.init in config.stages and config.save_checkpoint:
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
        data=_calibration(config, tokenizer) if needs_data else None,
        text=perplexity_ids(config.evaluate.perplexity, tokenizer) if Stage.perplexity in config.stages else None,
    )


def cache_of(config: RunConfig) -> Path:
    """Where imports and tokens are kept between runs."""
    return Path(config.cache_dir).expanduser()


def kept(config: RunConfig) -> Cache:
    """What is kept there, within its limit."""
    return Cache.at(config.cache_dir, config.cache_limit_gb)


def _calibration(config: RunConfig, tokenizer: Any) -> Calibration:
    if config.data.source is Source.speech:
        return speech_clips(config.data, tokenizer)
    return token_blocks(config.data, tokenizer, kept(config))


def _check_runnable(config: RunConfig, task: Task) -> None:
    name, stages = config.model.name, [stage.name for stage in config.stages if stage is not Stage.perplexity]
    if Stage.perplexity in config.stages and task in (Task.masked_lm, Task.speech_seq2seq):
        raise ConfigError(
            f"model={name}: a {task.name} model has no perplexity of text; give stages=[{', '.join(stages)}]"
        )
    needs_data = Stage.distill in config.stages or isinstance(config.init, FeatureConfig)
    if needs_data and (task is Task.speech_seq2seq) != (config.data.source is Source.speech):
        wanted = "speech" if task is Task.speech_seq2seq else "a text"
        raise ConfigError(f"data.source={config.data.source.name}: {name} is a {task.name} model and needs {wanted}")
    if config.distill.moments is Moments.int8 and importlib.util.find_spec("torchao") is None:
        raise ConfigError("distill.moments=int8: needs the package torchao (pip install torchao)")
    if config.model.dtype is Dtype.float16 and Stage.distill in config.stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")
