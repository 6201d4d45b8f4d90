"""Whole factorisations of a matrix, of which every rank is a cut.

They hold float32 numbers in rows, as a file does, and a cut starts from these: it gives the same bits whether its
spectrum was just made or read.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The factors of one matrix: ``a`` [out, r] and ``b`` [r, in]; of one an expert with [experts] before."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Return the columns of ``a``."""
        return self.a.shape[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SvdSpectrum:
    """W = U S V^T: the leading ``u`` [out, q] and ``vh`` [q, in], and all singular ``values`` [min(out, in)]."""

    u: Tensor
    values: Tensor
    vh: Tensor

    @property
    def columns(self) -> int:
        """Return the largest rank that can be cut."""
        return self.u.shape[-1]

    def cut(self, rank: int, *, symmetric: bool = False) -> Factors:
        """Return the factors at a rank; ``symmetric`` gives each the square roots of the singular values.

        :raises ValueError: for a rank above :attr:`columns`.
        """
        check_rank(rank, self.columns)
        u, s, vh = self.u[..., :rank], self.values[..., None, :rank], self.vh[..., :rank, :]
        if symmetric:
            root = s.sqrt()
            return Factors(u * root, root.mT * vh)
        return Factors(u * s, vh.contiguous())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file holds."""
        return {"u": self.u, "values": self.values, "vh": self.vh}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpectrum:
    """An orthonormal basis of the outputs of W, those with the most energy on calibration tokens first.

    Of an embedding, whose matrix is a table [V, d], the basis is that of its vectors.

    ``weight`` is W [out, in] or [experts, out, in], or the table; ``basis`` [out, q],
    [experts, out, q] or [d, q]; ``values`` are all eigenvalues of the outputs' second moment with its ridge,
    descending; ``weak`` [q] or [experts, q] is true for directions that the data says nothing of, None for an
    embedding.
    """

    weight: Tensor
    basis: Tensor
    values: Tensor
    weak: Tensor | None

    @property
    def columns(self) -> int:
        """Return the largest rank that can be cut."""
        return self.basis.shape[-1]

    def cut(self, rank: int) -> Factors:
        """Return the factors at a rank: A = U_r and B = U_r^T W, or for a table A = W U_r and B = U_r^T.

        :raises ValueError: for a rank above :attr:`columns`.
        """
        check_rank(rank, self.columns)
        basis = self.basis[..., :rank].contiguous()
        if self.weak is None:
            return Factors((self.weight.double() @ basis.double()).float(), basis.T.contiguous())
        if basis.dim() == 2:
            return Factors(basis, projected(basis, self.weight))
        pairs = zip(basis, self.weight, strict=True)  # one by one: all experts in float64 would be large
        return Factors(basis, torch.stack([projected(own, weight) for own, weight in pairs]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file holds; the weight is not one of them."""
        parts = {"basis": self.basis, "values": self.values, "weak": self.weak}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def undetermined(self, rank: int) -> int:
        """Count the leading directions that the data does not determine, over all experts; they follow the weights."""
        return 0 if self.weak is None else int(self.weak[..., :rank].sum())


def check_rank(rank: int, columns: int) -> None:
    """Raise a ValueError for a rank that a factorisation with so many columns does not hold."""
    if rank > columns:
        raise ValueError(f"rank {rank} of a factorisation that holds {columns} columns")


def projected(basis: Tensor, weight: Tensor) -> Tensor:
    """B = U^T W, multiplied in float64 from the basis as it is kept."""
    return (basis.double().T @ weight.double()).float()
