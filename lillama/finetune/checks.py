"""What cannot be fine-tuned, said before a model is loaded."""

import importlib.util
import os

from lillama.config import Dtype, RunConfig, Scope, Source, Stage, Task, Tune
from lillama.errors import ConfigError


def check_finetune(config: RunConfig, task: Task, *, compressed: bool) -> None:
    """Raise a :class:`ConfigError` where the configured fine-tuning cannot be made.

    :param task: what the model does. :param compressed: whether its weights are low-rank factors already.
    """
    settings, name = config.finetune, config.model.name
    if task is Task.masked_lm:
        raise ConfigError(f"stages: {name} is a {task.name} model and predicts no next token, so not finetune")
    speech = task is Task.speech_seq2seq
    if speech != (settings.data.source is Source.speech):
        wanted = "speech" if speech else "a text"
        source = settings.data.source.name
        raise ConfigError(f"finetune.data.source={source}: {name} is a {task.name} model and needs {wanted}")
    if settings.scope is not Scope.all and task is Task.causal_lm:
        raise ConfigError(f"finetune.scope={settings.scope.name}: {name} is a decoder alone; use all")
    if settings.train is Tune.factors and not compressed and Stage.init not in config.stages:
        raise ConfigError(f"finetune.train=factors: {name} is dense and has none; use all or lora")
    if settings.train is Tune.lora and importlib.util.find_spec("peft") is None:
        raise ConfigError("finetune.train=lora: needs the package peft (pip install peft)")
    _check_place(config)


def _check_place(config: RunConfig) -> None:
    if config.model.dtype is Dtype.float16:
        raise ConfigError("model.dtype=float16: gradients underflow in it; fine-tune in bfloat16 or float32")
    if config.model.offload:
        raise ConfigError(
            "model.offload=true: fine-tuning has the whole model on the device; do it in a run of its own"
            " (stages=[finetune] model.path=CHECKPOINT)"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("stages: finetune is made by one process; start it without torchrun, in a run of its own")
