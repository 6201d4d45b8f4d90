"""A matrix W [out, in] and a rank r become factors A [out, r] and B [r, in] with W ~ A B."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The factors of one matrix: ``a`` [out, r] and ``b`` [r, in]; of one an expert with [experts] before."""

    a: Tensor
    b: Tensor


def svd_factors(*, weight: Tensor, rank: int, symmetric: bool = False) -> Factors:
    """The best rank-r matrix in the Frobenius norm.

    :param weight: W [out, in], or [experts, out, in].
    :param symmetric: give each factor the square roots of the singular values instead of all to A (Eq. 2).
    Source: Eq. 2 of the paper; ``symmetric`` is what the authors' code does.
    """
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    u, s, vh = u[..., :rank], s[..., None, :rank], vh[..., :rank, :]
    if symmetric:
        root = s.sqrt()
        return Factors(u * root, root.mT * vh)
    return Factors(u * s, vh.contiguous())


def random_factors(*, shape: Sequence[int], rank: int, generator: torch.Generator) -> Factors:
    """Normal factors with standard deviation sqrt(1 / in_features), drawn on the generator's device (Figure 5).

    :param shape: [out, in], or [experts, out, in].
    """
    *experts, out_features, in_features = shape
    scale = in_features**-0.5
    a = torch.randn(*experts, out_features, rank, generator=generator, device=generator.device) * scale
    b = torch.randn(*experts, rank, in_features, generator=generator, device=generator.device) * scale
    return Factors(a, b)


def feature_factors(*, weight: Tensor, moment: Tensor, rank: int, floor: float, root: Tensor | None = None) -> Factors:
    """The best rank-r map for the outputs y = W x: the minimiser of E||W x - A B x||^2.

    A holds the leading eigenvectors of the second moment of y, W C W^T, and B = A^T W. C is taken with a small
    multiple of the identity added (:func:`ridge`), so that directions without data are ordered by the weights
    themselves: fewer tokens than dimensions, or an ill-conditioned moment, never fail.

    :param weight: W [out, in].
    :param moment: C = E[x x^T] [in, in], any positive scale.
    :param root: :func:`moment_root` of the moment, where the caller has it; only a tall W (out > in) needs it.
    Source: Eq. 3 of the paper; Yu and Wu 2023 (Atomic Feature Mimicking).
    """
    w = weight.double()
    out_features, in_features = w.shape
    if out_features <= in_features:
        c = moment.double()
        a = _leading(w @ c @ w.T + ridge(c, floor) * (w @ w.T), rank)
    else:
        # The smaller problem: right singular vectors of W L with C = L L, pushed through W L. The QR makes the
        # columns orthonormal however small their singular values are, and keeps their span.
        scaled = w @ (moment_root(moment, floor) if root is None else root)
        a = torch.linalg.qr(scaled @ _leading(scaled.T @ scaled, rank)).Q
    return Factors(a.float(), (a.T @ w).float())


def embedding_factors(*, weight: Tensor, counts: Tensor, rank: int, floor: float) -> Factors:
    """The best rank-r embedding for the tokens as they occur: the minimiser of sum_v p_v ||e_v - a_v B||^2.

    An embedding is a linear map of one-hot vectors, whose second moment is the diagonal of the token frequencies p; to
    these a small share of an even distribution is added, so that tokens that never occur follow the table itself.

    :param weight: the table [V, d]. :param counts: how often each token occurs [V], any positive scale.
    Source: Eq. 3 of the paper for the embedding of Appendix A.12.
    """
    table = weight.double()
    share = counts.double() / counts.sum().clamp_min(1) + floor
    b = _leading(table.T @ (share[:, None] * table), rank).T
    return Factors((table @ b.T).float(), b.float().contiguous())


def _leading(symmetric: Tensor, rank: int) -> Tensor:
    """The eigenvectors of the ``rank`` largest eigenvalues, as columns."""
    return torch.linalg.eigh(symmetric).eigenvectors.flip(1)[:, :rank]


def ridge(moment: Tensor, floor: float) -> float:
    """What is added to every eigenvalue of a moment: ``floor`` times its trace, or 1 where nothing was seen."""
    return floor * float(moment.trace()) or 1.0


def moment_root(moment: Tensor, floor: float) -> Tensor:
    """The symmetric square root of a moment [in, in] with its ridge added, in float64."""
    values, vectors = torch.linalg.eigh(moment.double())
    return (vectors * (values.clamp_min(0) + ridge(moment, floor)).sqrt()) @ vectors.T


def undetermined(*, b: Tensor, moment: Tensor, floor: float) -> int:
    """How many rows of a factor B [r, in] the data says nothing of: its energy in them is below the ridge's."""
    rows = b.double()
    energy = ((rows @ moment.double()) * rows).sum(1)
    return int((energy < ridge(moment, floor) * rows.square().sum(1)).sum())
