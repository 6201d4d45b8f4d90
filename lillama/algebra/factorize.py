"""A matrix W [out, in] and a rank r become factors A [out, r] and B [r, in] with W ~ A B."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lillama.algebra.spectrum import Factors, FeatureSpectrum, SvdSpectrum, projected


def svd_spectrum(*, weight: Tensor, columns: int | None = None) -> SvdSpectrum:
    """U, S and V^T of W [out, in] or [experts, out, in]; of U and V^T ``columns`` are kept, None for all."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return SvdSpectrum(u=u[..., :columns].contiguous(), values=s.contiguous(), vh=vh[..., :columns, :].contiguous())


def feature_spectrum(
    *, weight: Tensor, moment: Tensor, floor: float, root: Tensor | None = None, columns: int | None = None
) -> FeatureSpectrum:
    """Return the leading eigenvectors of the second moment of y = W x, W C W^T.

    C is taken with a small multiple of the identity added (:func:`ridge`), so that directions without data are ordered
    by the weights themselves: fewer tokens than dimensions, or an ill-conditioned moment, never fail.

    :param weight: W [out, in].
    :param moment: C = E[x x^T] [in, in], any positive scale.
    :param root: :func:`moment_root` of the moment, where the caller has it; only a tall W (out > in) needs it.
    :param columns: how many are kept; None for all min(out, in). The kept ones do not depend on it.
    Source: Eq. 3 of the paper; Yu and Wu 2023 (Atomic Feature Mimicking).
    """
    w, c = weight.double(), moment.double()
    out_features, in_features = w.shape
    if out_features <= in_features:
        values, vectors = _leading(w @ c @ w.T + ridge(c, floor) * (w @ w.T))
    else:
        # The smaller problem: right singular vectors of W L with C = L L, pushed through W L. The QR makes the
        # columns orthonormal however small their singular values are, and keeps their span.
        scaled = w @ (moment_root(moment, floor) if root is None else root)
        values, right = _leading(scaled.T @ scaled)
        vectors = torch.linalg.qr(scaled @ right).Q
    basis = _kept(vectors, columns)
    return FeatureSpectrum(
        weight=weight, basis=basis, values=values, weak=_weak(projected(basis, w), moment=c, floor=floor)
    )


def embedding_spectrum(*, weight: Tensor, counts: Tensor, floor: float, columns: int | None = None) -> FeatureSpectrum:
    """Return the leading eigenvectors of the second moment of the vectors that an embedding gives.

    An embedding is a linear map of one-hot vectors, whose second moment is the diagonal of the token frequencies p; to
    these a small share of an even distribution is added, so that tokens that never occur follow the table itself.

    :param weight: the table [V, d]. :param counts: how often each token occurs [V], any positive scale.
    :param columns: how many are kept; None for all.
    Source: Eq. 3 of the paper for the embedding of Appendix A.12.
    """
    table = weight.double()
    share = counts.double() / counts.sum().clamp_min(1) + floor
    values, vectors = _leading(table.T @ (share[:, None] * table))
    return FeatureSpectrum(weight=weight, basis=_kept(vectors, columns), values=values, weak=None)


def stacked_spectra(spectra: Sequence[FeatureSpectrum], weight: Tensor) -> FeatureSpectrum:
    """Stack the spectra of the experts of one fused matrix [experts, out, in] into one."""
    return FeatureSpectrum(
        weight=weight,
        basis=torch.stack([spectrum.basis for spectrum in spectra]),
        values=torch.stack([spectrum.values for spectrum in spectra]),
        weak=torch.stack([spectrum.weak for spectrum in spectra if spectrum.weak is not None]),
    )


def svd_factors(*, weight: Tensor, rank: int, symmetric: bool = False) -> Factors:
    """Return the best rank-r matrix in the Frobenius norm.

    :param weight: W [out, in], or [experts, out, in].
    :param symmetric: give each factor the square roots of the singular values instead of all to A (Eq. 2).
    Source: Eq. 2 of the paper; ``symmetric`` is what the authors' code does.

    >>> weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> factors = svd_factors(weight=weight, rank=2)
    >>> (factors.a @ factors.b).round().diagonal().tolist()
    [3.0, 2.0, 0.0]
    """
    return svd_spectrum(weight=weight).cut(rank, symmetric=symmetric)


def feature_factors(*, weight: Tensor, moment: Tensor, rank: int, floor: float, root: Tensor | None = None) -> Factors:
    """Return the best rank-r map for the outputs y = W x: the minimiser of E||W x - A B x||^2.

    See :func:`feature_spectrum`.

    Inputs that are large along the last axis make that axis the one to keep:

    >>> weight, moment = torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.diag(torch.tensor([1.0, 1.0, 100.0]))
    >>> factors = feature_factors(weight=weight, moment=moment, rank=1, floor=1e-7)
    >>> (factors.a @ factors.b).round().abs().diagonal().tolist()
    [0.0, 0.0, 1.0]
    """
    return feature_spectrum(weight=weight, moment=moment, floor=floor, root=root).cut(rank)


def embedding_factors(*, weight: Tensor, counts: Tensor, rank: int, floor: float) -> Factors:
    """Return the best rank-r embedding for the tokens as they occur: the minimiser of sum_v p_v ||e_v - a_v B||^2.

    See :func:`embedding_spectrum`.
    """
    return embedding_spectrum(weight=weight, counts=counts, floor=floor).cut(rank)


def random_factors(*, shape: Sequence[int], rank: int, generator: torch.Generator) -> Factors:
    """Normal factors with standard deviation sqrt(1 / in_features), drawn on the generator's device (Figure 5).

    :param shape: [out, in], or [experts, out, in].
    """
    *experts, out_features, in_features = shape
    scale = in_features**-0.5
    a = torch.randn(*experts, out_features, rank, generator=generator, device=generator.device) * scale
    b = torch.randn(*experts, rank, in_features, generator=generator, device=generator.device) * scale
    return Factors(a, b)


def _leading(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, largest first, and their eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0), vectors.flip(1)


def _kept(vectors: Tensor, columns: int | None) -> Tensor:
    return vectors[:, :columns].float().contiguous()


def ridge(moment: Tensor, floor: float) -> float:
    """Compute what is added to every eigenvalue of a moment: ``floor`` times its trace, 1 where nothing was seen."""
    return floor * float(moment.trace()) or 1.0


def moment_root(moment: Tensor, floor: float) -> Tensor:
    """Return the symmetric square root of a moment [in, in] with its ridge added, in float64."""
    values, vectors = torch.linalg.eigh(moment.double())
    return (vectors * (values.clamp_min(0) + ridge(moment, floor)).sqrt()) @ vectors.T


def undetermined(*, b: Tensor, moment: Tensor, floor: float) -> int:
    """Count the rows of a factor B [r, in] that the data leaves open: its energy in them is below the ridge's."""
    return int(_weak(b, moment=moment, floor=floor).sum())


def _weak(b: Tensor, *, moment: Tensor, floor: float) -> Tensor:
    """Mark the rows of B [r, in] that the data does not determine [r]."""
    rows = b.double()
    energy = ((rows @ moment.double()) * rows).sum(1)
    return energy < ridge(moment, floor) * rows.square().sum(1)
