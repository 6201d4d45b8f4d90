"""Compute the loss of a fine-tuning, part by part of a batch: the parts' losses add up to the batch's mean."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lillama.algebra.losses import normalized_mse_distance
from lillama.config import FinetuneConfig, Objective
from lillama.finetune.divergence import divergence
from lillama.finetune.teacher import keep_apart
from lillama.finetune.trainable import TrainableModel
from lillama.model.blocks import Blocks
from lillama.model.calls import hidden_states
from lillama.model.inputs import Batch, model_inputs
from lillama.model.prediction import NOT_PREDICTED, predicted, prediction_loss, predictions

States = dict[int, Tensor]  # the output hidden states of each block [b, t, d], by its number


class Loss(Protocol):
    """Computes a loss whose parts add up."""

    def of(self, whole: Batch) -> None:
        """Count what the losses of this batch's parts are divided by."""

    def __call__(self, part: Batch) -> Tensor:
        """Compute a part's share of the mean loss of the batch [], in float32."""


def loss_of(tuned: TrainableModel, config: FinetuneConfig, teacher: nn.Module | None) -> Loss:
    """Make the configured loss of a model.

    :param teacher: the dense model, which ``objective=kl`` needs.
    :raises ValueError: where it is needed and there is none.
    """
    if config.objective is Objective.lm:
        return PredictionLoss(tuned.model)
    if teacher is None:
        raise ValueError("finetune.objective=kl needs the dense model")
    keep_apart(tuned.learning.values(), teacher)
    return LogitsLoss(tuned.model, teacher, config)


class PredictionLoss:
    """Computes the cross-entropy of the predicted tokens."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._count = 0

    def of(self, whole: Batch) -> None:
        """Count the predicted tokens."""
        self._count = predicted(self.model, whole)

    def __call__(self, part: Batch) -> Tensor:
        return prediction_loss(self.model, part, count=self._count)


class LogitsLoss:
    """Computes KL(teacher || model) wherever a token is predicted, and compares the hidden states where they count.

    The teacher runs once a part, in evaluation mode and in its own dtype.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, config: FinetuneConfig) -> None:
        self.model, self.teacher, self.config = model, teacher, config
        self._own, self._theirs = Blocks(model), Blocks(teacher)
        self._whole: Batch | None = None
        self._count = 0

    def of(self, whole: Batch) -> None:
        """Count the predicted tokens."""
        self._whole, self._count = whole, predicted(self.model, whole)

    def __call__(self, part: Batch) -> Tensor:
        weight = self.config.hidden_weight
        theirs, teacher_states = self._taught(part)
        arguments, targets = predictions(self.model, part)
        with self._watching(self._own) as states:
            ours = self.model(**arguments).logits
        loss = divergence(
            ours,
            theirs,
            counted=targets != NOT_PREDICTED,
            temperature=self.config.temperature,
            scale=1 / max(self._count, 1),
        )
        return loss + weight * self._distance(states, teacher_states, part) if weight else loss

    def _taught(self, part: Batch) -> tuple[Tensor, States]:
        arguments, _ = predictions(self.teacher, part)
        kind = part.ids.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False), self._watching(self._theirs) as states:
            return self.teacher(**arguments).logits, states

    def _watching(self, blocks: Blocks) -> Any:
        return watched(blocks) if self.config.hidden_weight else nullcontext({})

    def _distance(self, states: States, wanted: States, part: Batch) -> Tensor:
        """Average ||own - teacher's||^2 / ||teacher's||^2 over the positions that count and over the blocks."""
        assert self._whole is not None
        inputs, whole = (model_inputs(self.model, batch) for batch in (part, self._whole))
        found = []
        for index, hidden in states.items():
            values = normalized_mse_distance(hidden.float(), wanted[index].float())
            mask, every = (each.mask(self._own.stack(index)) for each in (inputs, whole))
            if mask is None or every is None:  # every position of every row counts
                found.append(values.mean() * (len(part) / len(self._whole)))
            else:
                found.append(values[mask].sum() / every.sum().clamp(min=1))
        return torch.stack(found).mean()


@contextmanager
def watched(blocks: Blocks) -> Iterator[States]:
    """Collect the output hidden states of every block; a recomputation that comes later is not looked at."""
    states: States = {}

    def watch(index: int) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            states[index] = hidden_states(output)

        return blocks[index].register_forward_hook(hook)

    hooks = [watch(index) for index in range(len(blocks))]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
