"""Distances between a student's and a teacher's activations, computed in float32.

Shapes: student and teacher [b, t, d], mask [b, t] (true where a token counts) or None. Each returns a scalar: the
mean, or the sum, over the tokens that count.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from lillama.config import Distance


def l1_cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 7 of the paper (Chang et al. 2022), a value per token [b, t]: ||s - t||_1 / D - log sigmoid(cos(s, t))."""
    l1 = (student - teacher).abs().mean(-1)
    return l1 - F.logsigmoid(F.cosine_similarity(student, teacher, dim=-1))


def mse_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error, a value per token [b, t]."""
    return (student - teacher).square().mean(-1)


def normalized_mse_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's squared norm, a value per token [b, t]."""
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(1e-12)


DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    Distance.l1_cosine: l1_cosine_distance,
    Distance.mse: mse_distance,
    Distance.normalized_mse: normalized_mse_distance,
}


def feature_loss(
    student: Tensor, teacher: Tensor, *, distance: Distance, mask: Tensor | None = None, total: bool = False
) -> Tensor:
    """One number for a batch: the mean (or the sum, ``total``) of a distance over the tokens that count.

    Where none counts (a batch too short for its decoder), it is zero.

    >>> import torch
    >>> float(feature_loss(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), distance=Distance.mse))
    1.0
    """
    values = DISTANCES[distance](student.float(), teacher.float())
    if mask is not None:
        values = values[mask]
    return values.sum() if total else values.sum() / max(values.numel(), 1)
