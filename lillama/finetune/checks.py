"""Refuse what cannot be fine-tuned, before a model is loaded."""

import importlib.util
import os
from typing import Any

from lillama.config import Dtype, Objective, RunConfig, Scope, Source, Stage, Task, Tune
from lillama.core.errors import ConfigError
from lillama.model.blocks import Blocks
from lillama.model.source import ModelSource


def check_finetune(config: RunConfig, task: Task, *, compressed: bool) -> None:
    """Raise a :class:`ConfigError` where the configured fine-tuning cannot be made.

    :param task: what the model does. :param compressed: whether its weights are low-rank factors already.
    """
    settings, name = config.finetune, config.model.name
    if task is Task.masked_lm:
        raise ConfigError(f"stages: {name} is a {task.name} model and predicts no next token, so not finetune")
    speech = task is Task.speech_seq2seq
    if speech != (config.finetune_data.source is Source.speech):
        wanted = "speech" if speech else "a text"
        source = config.finetune_data.source.name
        raise ConfigError(f"finetune.data.source={source}: {name} is a {task.name} model and needs {wanted}")
    if settings.scope is not Scope.all and task is Task.causal_lm:
        raise ConfigError(f"finetune.scope={settings.scope.name}: {name} is a decoder alone; use all")
    if settings.train is Tune.factors and not compressed and Stage.init not in config.stages:
        raise ConfigError(f"finetune.train=factors: {name} is dense and has none; use all or lora")
    if settings.train is Tune.lora and importlib.util.find_spec("peft") is None:
        raise ConfigError("finetune.train=lora: needs the package peft (pip install peft)")
    if settings.objective is Objective.kl and Stage.init not in config.stages and config.baseline is None:
        raise ConfigError(f"finetune.objective=kl: needs the dense model of {name}; name it by evaluate.baseline")
    _check_place(config)


def check_teacher(config: RunConfig, model: ModelSource, base: ModelSource | None) -> None:
    """Raise a :class:`ConfigError` where the logits of ``evaluate.baseline`` are not those that a model can learn from.

    Of a run that compresses, the teacher is its own dense model, and nothing is looked at.
    """
    if config.finetune.objective is not Objective.kl or Stage.init in config.stages or base is None:
        return
    where = f"evaluate.baseline={base.config.path}"
    if base.compressed:
        raise ConfigError(f"{where}: is compressed itself; finetune.objective=kl learns from a dense model")
    if base.task is not model.task:
        raise ConfigError(f"{where}: is another kind of model than {config.model.name}")
    if not base.same_vocabulary(model):
        raise ConfigError(f"{where}: has another tokenizer; its logits are of other tokens")
    (own, *states), (others, *wanted) = (_sizes(source.meta) for source in (model, base))
    if own != others:
        raise ConfigError(f"{where}: has {others} logits, and {config.model.name} has {own}")
    if config.finetune.hidden_weight and states != wanted:
        raise ConfigError(f"finetune.hidden_weight: {where} has other blocks than {config.model.name}; set it to 0")


def _sizes(model: Any) -> tuple[int, ...]:
    """Count a model's logits, the width of its hidden states, and its blocks."""
    return (*model.get_output_embeddings().weight.shape, len(Blocks(model)))


def _check_place(config: RunConfig) -> None:
    if config.model.dtype is Dtype.float16:
        raise ConfigError("model.dtype=float16: gradients underflow in it; fine-tune in bfloat16 or float32")
    if config.model.offload and not _teacher_stays_at_home(config):
        raise ConfigError(
            "model.offload=true: fine-tuning has the whole model on the device; do it in a run of its own"
            " (stages=[finetune] model.path=CHECKPOINT)"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("stages: finetune is made by one process; start it without torchrun, in a run of its own")


def _teacher_stays_at_home(config: RunConfig) -> bool:
    """Tell whether offloading is of use: the compressed model is on the device, and dense blocks visit it."""
    settings = config.finetune
    return Stage.init in config.stages and settings.objective is Objective.kl and settings.train is Tune.factors
