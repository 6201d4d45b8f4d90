"""Compute the KL divergence of two models' logits in float32, a few positions at a time."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

VALUES = 2**24  # of a vocabulary that are in float32 at a time: 64 MiB for each of the few tensors of a step


def divergence(
    student: Tensor, teacher: Tensor, *, counted: Tensor, temperature: float = 1.0, scale: float = 1.0
) -> Tensor:
    """Sum KL(teacher || student) over the positions that count, times ``scale`` and the squared temperature [].

    The student's gradient is computed in the same pass and kept in the dtype of its logits: neither model's logits are
    ever whole in float32. The square keeps gradients of one size for every temperature (Hinton et al. 2015).

    :param student, teacher: logits [b, t, V]. :param counted: [b, t], true where a position counts.
    """
    flat = student.flatten(0, 1), teacher.flatten(0, 1), counted.flatten()
    return _Divergence.apply(*flat, (temperature, scale))


class _Divergence(torch.autograd.Function):
    """Compute the same of [n, V] and [n]."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, counted: Tensor, factors: tuple[float, float]) -> Tensor:
        temperature, scale = factors
        total = torch.zeros((), device=student.device)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for rows in _parts(*student.shape):
            ours = F.log_softmax(student[rows].float() / temperature, dim=-1)
            theirs = F.log_softmax(teacher[rows].float() / temperature, dim=-1)
            counts = counted[rows, None]
            total += F.kl_div(ours, theirs, reduction="none", log_target=True).where(counts, 0).sum()
            if gradient is not None:
                gradient[rows] = (ours.exp() - theirs.exp()).mul(temperature * scale).where(counts, 0)
        ctx.save_for_backward(gradient)
        return total * (temperature**2 * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


def _parts(count: int, vocabulary: int) -> Iterator[slice]:
    size = max(VALUES // vocabulary, 1)
    return (slice(start, start + size) for start in range(0, count, size))
