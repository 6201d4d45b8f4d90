"""First and second moments of activations and of gradients, streamed in float64."""

from collections.abc import Mapping

import torch
from torch import Tensor

MOMENT_BYTES = 8 * 2**30  # as many are collected at a time as fit into it
PANEL = 512  # columns that are added to at a time, down to the diagonal: up to half of the products are left out


class Moment:
    """E[x x^T] and E[x] of the vectors seen so far; ``size`` is their dimension.

    What is summed is symmetric, so ``total`` is kept up to date in its upper triangle alone.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.sum = torch.zeros(size, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add the vectors of x [..., size]; ``mask`` [...] is true where a vector counts.

        What is summed within one call (a batch of some thousand tokens) is float32, the calls are summed in float64.
        """
        rows = x.detach().reshape(-1, x.shape[-1]) if mask is None else x.detach()[mask]
        rows = rows.float()
        for start in range(0, len(self.total), PANEL):
            end = start + PANEL
            self.total[:end, start:end] += rows[:, :end].T @ rows[:, start:end]
        self.sum += rows.sum(0)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        """Return the mean of x x^T, [size, size]; zero where nothing was seen."""
        whole = self.total.triu()
        whole += whole.triu(1).T
        return whole.div_(max(self.count, 1))

    @property
    def mean(self) -> Tensor:
        """Return the mean of x, [size]; zero where nothing was seen."""
        return self.sum / max(self.count, 1)


class DiagonalMoment:
    """E[g^2] of the vectors seen so far, by component, summed as in :class:`Moment`; ``size`` is their dimension."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add the vectors of x [..., size]; ``mask`` [...] is true where a vector counts."""
        rows = x.detach().reshape(-1, x.shape[-1]) if mask is None else x.detach()[mask]
        self.total += rows.float().square().sum(0)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        """Return the mean of x^2, [size]; zero where nothing was seen."""
        return self.total / max(self.count, 1)


def moment_bytes(size: int) -> int:
    """Count the bytes of a second moment of vectors of a dimension."""
    return 8 * size**2


def within_limit(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The names in groups, in their order, whose ``sizes`` in bytes fit into ``limit`` together; at least one each."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups
