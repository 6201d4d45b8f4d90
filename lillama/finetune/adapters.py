"""LoRA through peft: adapters on a compressed model's factors, or on a dense model's matrices."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lillama.config import LoraConfig
from lillama.core.errors import ConfigError
from lillama.model.lowrank import LowRank, LowRankEmbedding, LowRankLinear


def add_adapters(model: Any, config: LoraConfig, names: list[str]) -> Any:
    """Put an adapter beside each of these modules, in place; the adapted model as peft has it.

    :raises ConfigError: where there is no module, or one that peft cannot adapt.
    """
    import peft

    if not names:
        raise ConfigError("finetune.train=lora: the model has no matrix that takes an adapter (experts take none)")
    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    try:
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=names, **options))
    except ValueError as error:
        raise ConfigError(f"finetune.train=lora: {' '.join(str(error).split())[:300]}") from None


def adaptable(model: Any) -> Iterator[str]:
    """The names of the modules that take an adapter: the factors, where there are any, else what they could replace.

    Factors that a prediction head shares with the embedding are left out: one update would have to serve both.
    """
    modules = dict(model.named_modules())
    if any(isinstance(module, LowRank) for module in modules.values()):
        shared = {id(module.A.weight) for module in modules.values() if isinstance(module, LowRankEmbedding)}
        for name, module in modules.items():
            if isinstance(module, LowRankLinear) and id(module.A.weight) not in shared:
                yield from (f"{name}.A", f"{name}.B")
        return
    head = model.get_output_embeddings()
    for name, module in modules.items():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name


def merge_adapters(adapted: Any) -> nn.Module:
    """Return the model with its updates added to the matrices that they stood beside, and no adapter any more."""
    return adapted.merge_and_unload()
