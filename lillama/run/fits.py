"""Memory that a run cannot do without, from shapes: what this machine lacks is refused before it is asked for."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from lillama.config import Stage, Tune, Weights
from lillama.core.errors import ConfigError
from lillama.core.machine import host_memory
from lillama.run.run import Run

LEARNT = 4 * 4  # bytes of a parameter that learns: itself, its gradient and AdamW's two moments, all float32
PARTLY_BUILT = {Stage.plan, Stage.bench}  # a random model is built only as far as it is measured


def check_memory(run: Run) -> None:
    """Raise a :class:`ConfigError` where the host cannot hold what the configuration asks for.

    These are lower bounds: a run that passes may still need more. A GPU that is too small says so by itself.
    """
    config, source = run.config, run.model
    if source.device.type != "cpu" or run.stages <= PARTLY_BUILT:
        return
    random, compressed = config.model.weights is Weights.random, source.compressed
    learns = config.finetune.train if Stage.finetune in config.stages else Tune.none
    if compressed and learns is not Tune.lora:
        return
    model = source.meta  # of a compressed one, what it was before: an adapter is no smaller
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not compressed and (random or not config.model.offload):
        key = "model.architecture" if random else f"model.path={config.model.path}"
        _check(key, parameters * source.dtype.itemsize, f"{parameters:,} parameters")
    if learns is Tune.all and Stage.init not in config.stages:
        _check("finetune.train=all", parameters * LEARNT, f"{parameters:,} parameters that learn")
    if learns is Tune.lora:
        rank = config.finetune.lora.rank
        learnt = rank * sum(map(_ends, model.modules()))
        _check(f"finetune.lora.rank={rank}", learnt * LEARNT, f"{learnt:,} parameters that learn")


def _ends(module: nn.Module) -> int:
    """Count the numbers that enter and leave a linear: what an adapter of rank 1 holds."""
    return sum(module.weight.shape) if isinstance(module, nn.Linear | Conv1D) else 0


def _check(key: str, needed: int, what: str) -> None:
    there = host_memory()
    if needed > there:
        have, need = f"{there / 1e9:,.1f} GB", f"{needed / 1e9:,.1f} GB"
        raise ConfigError(f"{key}: {what} need {need} of memory, this machine has {have}")
