"""Calculate the loss of calibration tokens whose gradients ``init=kfac`` takes moments of."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lillama.config import Task
from lillama.model.inputs import Batch
from lillama.model.prediction import NOT_PREDICTED, predictions
from lillama.model.task import task_of_architecture

log = logging.getLogger(__name__)
MASKED_SHARE = 0.15  # of BERT's own training


@dataclass(slots=True)
class CalibrationLoss:
    """The summed loss of a batch: next tokens, a decoder's targets, or masked tokens, by the model's task.

    :param sampled: draw the labels from the model's predictions instead of taking the text's own.
    :param mask_token: of a masked language model's tokenizer; None: every token is predicted as it stands.
    :param seed: of the masked positions and the drawn labels; they depend on the batch's number too.
    """

    model: Any
    sampled: bool
    mask_token: int | None
    seed: int

    def prepare(self, batch: Batch, number: int) -> tuple[Batch, Mapping[str, Any], Tensor]:
        """Return a batch as the model reads it, its arguments, and the token [b, t] to predict at each position.

        The latter is -100 where nothing is predicted.
        """
        if task_of_architecture(self.model.config) is not Task.masked_lm:
            return (batch, *predictions(self.model, batch))
        read, targets = self._masked(batch, number)
        arguments, _ = predictions(self.model, read)
        return read, arguments, targets

    def summed(self, logits: Tensor, targets: Tensor, number: int) -> Tensor:
        """Sum the cross-entropy over the predicted positions, in float32 []."""
        wide = logits.flatten(0, 1).float()
        wanted = targets.flatten()
        if self.sampled:
            wanted = self._drawn(wide, wanted, number)
        return F.cross_entropy(wide, wanted, ignore_index=NOT_PREDICTED, reduction="sum")

    @torch.no_grad()
    def variance(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum p (1 - p) over the predicted positions, in float64 [V]: the variance of labels drawn from the model.

        It is the expectation of a squared gradient at the logits; rare tokens have it whether or not they occur.
        """
        total = logits.new_zeros(logits.shape[-1], dtype=torch.float64)
        for row, wanted in zip(logits, targets, strict=True):
            share = row[wanted != NOT_PREDICTED].float().softmax(-1)
            total += share.sub_(share.square()).sum(0)
        return total.clamp_min(0)

    @torch.no_grad()
    def _drawn(self, logits: Tensor, targets: Tensor, number: int) -> Tensor:
        """Labels drawn from the model's predictions; drawn on the CPU, so the same on every device."""
        predicted = targets != NOT_PREDICTED
        share = torch.rand(len(targets), 1, generator=self._generator(number), dtype=torch.float64)
        steps = logits.double().softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(steps, share.to(logits.device) * steps[:, -1:]).flatten()
        return torch.where(predicted, drawn.clamp_max(logits.shape[-1] - 1), targets)

    def _masked(self, batch: Batch, number: int) -> tuple[Batch, Tensor]:
        """Return a batch with some tokens masked, and those tokens as the targets."""
        real = torch.ones_like(batch.ids, dtype=torch.bool) if batch.mask is None else batch.mask
        if self.mask_token is None:
            return batch, batch.ids.masked_fill(~real, NOT_PREDICTED)
        chosen = torch.rand(batch.ids.shape, generator=self._generator(number)).to(batch.ids.device) < MASKED_SHARE
        chosen &= real
        return (
            replace(batch, ids=batch.ids.masked_fill(chosen, self.mask_token)),
            batch.ids.masked_fill(~chosen, NOT_PREDICTED),
        )

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)
