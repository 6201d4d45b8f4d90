"""A model that is fine-tuned: which of its parameters learn, in which numbers, and what becomes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lillama.config import FinetuneConfig, Scope, Tune
from lillama.core.errors import ConfigError, DivergedError
from lillama.finetune.adapters import adaptable, add_adapters, merge_adapters
from lillama.model.lowrank import LowRank
from lillama.model.surgery import orders_of

OTHER = {Scope.encoder: Scope.decoder, Scope.decoder: Scope.encoder}


class TrainableModel:
    """A model some of whose parameters learn, in float32 until :meth:`settle` (master weights).

    :param model: a causal language model or an encoder-decoder, none of whose parameters asks for a gradient.
    :raises ConfigError: where nothing would learn.
    """

    def __init__(self, model: Any, config: FinetuneConfig) -> None:
        self.model = model
        self.dtype = next(model.parameters()).dtype
        names = [name for name, _ in model.named_modules()]
        side = {name for name in names if _within(name, config.scope)}
        self._adapted: Any = None
        if config.train is Tune.lora:
            self._adapted = add_adapters(model, config.lora, [name for name in adaptable(model) if name in side])
            self.learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        else:
            wanted = _factors(model) if config.train is Tune.factors else {id(p) for p in model.parameters()}
            if not config.embedding:
                wanted -= {id(p) for p in model.get_input_embeddings().parameters()}
            own = ((name, p) for name, p in model.named_parameters() if id(p) in wanted)
            self.learning = {name: p for name, p in own if _within(name, config.scope)}
        if not self.learning:
            raise ConfigError(f"finetune.train={config.train.name}: nothing of the model would learn")
        self._narrow = {parameter: parameter.dtype for parameter in self.learning.values()}
        for parameter in self.learning.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.model.parameters()).device

    def orders(self) -> dict[str, torch.Tensor]:
        """Return the orders of columns of pivoted factors, by a name of their own; they do not learn."""
        return orders_of(self.model)

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The model in evaluation mode and in the numbers that a checkpoint will hold, while the context lasts."""
        wide = {parameter: parameter.data for parameter in self._narrow}
        self._narrowed()
        self.model.eval()
        try:
            yield self.model
        finally:
            for parameter, value in wide.items():
                parameter.data = value
            self.model.train()

    def settle(self) -> nn.Module:
        """Return the model when it has learnt: in its own numbers, adapters merged, in evaluation mode."""
        self._narrowed()
        model = self.model if self._adapted is None else merge_adapters(self._adapted)
        return model.eval().requires_grad_(False)

    def check_finite(self) -> None:
        """Raise a :class:`DivergedError` naming the first weight that is not finite."""
        for name, parameter in self.learning.items():
            if not bool(parameter.isfinite().all()):
                raise DivergedError(f"finetune: {name} holds values that are not finite")

    def _narrowed(self) -> None:
        for parameter, dtype in self._narrow.items():
            parameter.data = parameter.data.to(dtype)


def _within(name: str, scope: Scope) -> bool:
    """Tell whether a module or a parameter lies outside of the frozen side; what both sides share lies in neither."""
    return scope is Scope.all or OTHER[scope].name not in name.split(".")


def _factors(model: nn.Module) -> set[int]:
    """Return the identities of the factors, and of the biases that they carry."""
    pairs = (module for module in model.modules() if isinstance(module, LowRank))
    return {id(parameter) for pair in pairs for parameter in pair.factor_parameters()}
