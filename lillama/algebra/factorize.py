"""A matrix W [out, in] and a rank r become factors A [out, r] and B [r, in] with W ~ A B."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The factors of one matrix: ``a`` [out, r] and ``b`` [r, in]."""

    a: Tensor
    b: Tensor


def svd_factors(*, weight: Tensor, rank: int, symmetric: bool = False) -> Factors:
    """The best rank-r matrix in the Frobenius norm.

    :param weight: W [out, in].
    :param symmetric: give each factor the square roots of the singular values instead of all to A (Eq. 2).
    Source: Eq. 2 of the paper; ``symmetric`` is what the authors' code does.
    """
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    if symmetric:
        root = s.sqrt()
        return Factors(u * root, root[:, None] * vh)
    return Factors(u * s, vh.contiguous())


def random_factors(*, shape: tuple[int, int], rank: int, generator: torch.Generator) -> Factors:
    """Normal factors with standard deviation sqrt(1 / in_features), drawn on the generator's device (Figure 5)."""
    out_features, in_features = shape
    scale = in_features**-0.5
    a = torch.randn(out_features, rank, generator=generator, device=generator.device) * scale
    b = torch.randn(rank, in_features, generator=generator, device=generator.device) * scale
    return Factors(a, b)


def feature_factors(*, weight: Tensor, moment: Tensor, rank: int, floor: float) -> Factors:
    """The best rank-r map for the outputs y = W x: the minimiser of E||W x - A B x||^2.

    A holds the leading eigenvectors of the second moment of y, which is W C W^T, and B = A^T W. Eigenvalues of C
    below ``floor`` times the largest are raised to it, so that directions without data are ordered by the weights
    themselves: fewer tokens than dimensions, or an ill-conditioned moment, never fail.

    :param weight: W [out, in].
    :param moment: C = E[x x^T] [in, in], any positive scale.
    Source: Eq. 3 of the paper; Yu and Wu 2023 (Atomic Feature Mimicking).
    """
    w = weight.double()
    c = floored(moment.double(), floor)
    out_features, in_features = w.shape
    if out_features <= in_features:
        a = torch.linalg.eigh(w @ c @ w.T).eigenvectors.flip(1)[:, :rank]
    else:
        # The smaller problem: right singular vectors of W L with C = L L^T, pushed through W L. The QR makes the
        # columns orthonormal however small their singular values are, and keeps their span.
        root = matrix_root(c)
        v = torch.linalg.eigh(root @ (w.T @ w) @ root).eigenvectors.flip(1)[:, :rank]
        a = torch.linalg.qr(w @ root @ v).Q
    return Factors(a.float(), (a.T @ w).float())


def floored(moment: Tensor, floor: float) -> Tensor:
    """The moment with its eigenvalues raised to ``floor`` times the largest; the identity where it is zero."""
    values, vectors = torch.linalg.eigh(moment)
    top = values[-1]
    if top <= 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return (vectors * values.clamp_min(floor * top)) @ vectors.T


def matrix_root(moment: Tensor) -> Tensor:
    """The symmetric square root of a positive definite matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def weak_directions(moment: Tensor, floor: float) -> int:
    """How many eigenvalues of a moment lie below ``floor`` times the largest."""
    values = torch.linalg.eigvalsh(moment.double())
    return int((values < floor * values[-1]).sum())
