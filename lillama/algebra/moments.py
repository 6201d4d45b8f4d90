"""Second moments of activations, streamed in float64."""

import torch
from torch import Tensor


class Moment:
    """E[x x^T] of the vectors seen so far; ``size`` is their dimension."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add the vectors of x [..., size]; ``mask`` [...] is true where a vector counts.

        The products of one call are summed in float32 (a batch of some thousand tokens), the calls in float64.
        """
        rows = x.detach().reshape(-1, x.shape[-1]) if mask is None else x.detach()[mask]
        rows = rows.float()
        self.total += (rows.T @ rows).double()
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        """The mean of x x^T, [size, size]; zero where nothing was seen."""
        return self.total / max(self.count, 1)
