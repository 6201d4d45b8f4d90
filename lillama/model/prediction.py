"""The loss of a model's own predictions, for every kind of model that predicts tokens."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lillama.model.inputs import Batch, model_inputs

NOT_PREDICTED = -100


def predictions(model: nn.Module, batch: Batch) -> tuple[Mapping[str, Any], Tensor]:
    """Return the arguments of a forward pass, and which token [b, t] each position is to predict (-100: none).

    A decoder predicts the token after each; an encoder-decoder what its decoder is to say.
    """
    inputs = model_inputs(model, batch)
    if inputs.targets is not None:
        return inputs.arguments, inputs.targets
    following = batch.ids.roll(-1, dims=1)
    if batch.mask is not None:
        following = following.masked_fill(~batch.mask.roll(-1, dims=1), NOT_PREDICTED)
    following[:, -1] = NOT_PREDICTED
    return inputs.arguments, following


def predicted(model: nn.Module, batch: Batch) -> int:
    """Count the tokens of a batch that are predicted."""
    return int((predictions(model, batch)[1] != NOT_PREDICTED).sum())


def prediction_loss(model: nn.Module, batch: Batch, *, count: int) -> Tensor:
    """Return the summed cross-entropy of the predicted tokens over ``count``, in float32 [].

    :param count: the predicted tokens of the batch that this one is a part of: the parts' losses then sum to its mean.
    """
    arguments, targets = predictions(model, batch)
    logits = model(**arguments).logits
    summed = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_PREDICTED, reduction="sum"
    )
    return summed / max(count, 1)
