"""The two-sided start: factors that minimise tr((W - A B)^T G (W - A B) C), the rise of the loss by its curvature.

W [out, in] maps x to y = W x. C = E[x x^T] [in, in] is the second moment of its inputs, G = E[g g^T] [out, out] that of
the gradient g of the summed loss with respect to y, both per token. With D = A B - W, half of tr(D^T G D C) is the
expected rise of the loss per token, in nats (Kronecker-factored curvature: Martens and Grosse 2015).

With any roots G = L L^T and C = M M^T, the problem is the best rank-r approximation of L^T W M = U S V^T. It is solved
on the smaller side, where only the root of that side is needed: for in <= out, M^T (W^T G W) M = V S^2 V^T, A = W M V_r
and B = V_r^T M^-1; for out < in, L^T (W C W^T) L = U S^2 U^T, A = L^-T U_r and B = U_r^T L^T W. Either way the factors
are W projected on one side, so one pair of small matrices serves every rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lillama.algebra.spectrum import Factors, check_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSidedSpectrum:
    """A whole two-sided factorisation of W [out, in], or of a stack of experts [experts, out, in].

    ``reduce`` P [d, q] and ``expand`` Q [q, d], with [experts] before where W has them, project the smaller side d of
    W: its inputs (A = W P_r, B = Q_r, see :func:`solves_inputs`), else its outputs (A = P_r, B = Q_r W). ``values`` are
    the squared singular values of L^T W M, descending: half the sum after the r-th is the predicted rise at rank r.
    ``weak`` [q] is true for directions that the calibration tokens do not determine; ``loss`` [] is the dense model's
    mean loss on those tokens, in nats, to which the rise is added.
    """

    weight: Tensor
    reduce: Tensor
    expand: Tensor
    values: Tensor
    weak: Tensor
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def columns(self) -> int:
        """Return the largest rank that can be cut."""
        return self.reduce.shape[-1]

    def cut(self, rank: int) -> Factors:
        """Cut the factors at a rank.

        :raises ValueError: for a rank above :attr:`columns`.
        """
        check_rank(rank, self.columns)
        reduce, expand = self.reduce[..., :rank], self.expand[..., :rank, :]
        if solves_inputs(self.weight):
            return Factors(_products(self.weight, reduce), expand.contiguous())
        return Factors(reduce.contiguous(), _products(expand, self.weight))

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts that a file holds; the weight is the model's."""
        parts = {"reduce": self.reduce, "expand": self.expand, "values": self.values, "weak": self.weak}
        return {**parts, "loss": self.loss}

    def undetermined(self, rank: int) -> int:
        """Count the leading directions that the tokens do not determine, over all experts."""
        return int(self.weak[..., :rank].sum())


@dataclass(frozen=True, slots=True)
class Root:
    """A root L of a positive definite moment L L^T: lower triangular [d, d], or the diagonal [d] of a diagonal one."""

    values: Tensor

    def times(self, x: Tensor) -> Tensor:
        """L x, for x [d, k]."""
        return self.values[:, None] * x if self.values.dim() == 1 else self.values @ x

    def transposed_times(self, x: Tensor) -> Tensor:
        """L^T x, for x [d, k]."""
        return self.values[:, None] * x if self.values.dim() == 1 else self.values.T @ x

    def congruent(self, x: Tensor) -> Tensor:
        """L^T X L, for a symmetric X [d, d]."""
        return self.transposed_times(self.transposed_times(x).T)

    def transposed_solve(self, x: Tensor) -> Tensor:
        """L^-T x, for x [d, k]."""
        if self.values.dim() == 1:
            return x / self.values[:, None]
        return torch.linalg.solve_triangular(self.values.T, x, upper=True)


class Metric:
    """A damped moment [d, d], or its diagonal [d], in float64: what errors on one side of a matrix are measured by.

    A share of the mean eigenvalue is added to every eigenvalue, or one where all are zero. This is shrinkage towards
    the mean of the diagonal, up to scale.
    """

    def __init__(self, moment: Tensor, share: float) -> None:
        wide = moment.double()
        mean = float((wide if wide.dim() == 1 else wide.diagonal()).mean())
        self.added = share * mean or 1.0
        self.value = wide + (self.added if wide.dim() == 1 else torch.eye(len(wide), device=wide.device) * self.added)

    @cached_property
    def root(self) -> Root:
        """Compute a root, once."""
        return root_of(self.value)

    def times(self, x: Tensor) -> Tensor:
        """C x, for x [d, k]."""
        return self.value[:, None] * x if self.value.dim() == 1 else self.value @ x


def solves_inputs(weight: Tensor) -> bool:
    """Tell whether W [..., out, in] is projected on its inputs: its smaller side, or either of equal ones."""
    return weight.shape[-1] <= weight.shape[-2]


def two_sided_spectrum(
    *, weight: Tensor, inputs: Tensor, outputs: Tensor, input_damping: float, output_damping: float, columns: int | None
) -> TwoSidedSpectrum:
    """Factorise W [out, in] under a metric on either side, in float64.

    :param inputs: C [in, in], or its diagonal [in]. :param outputs: G [out, out], or its diagonal [out]; either may be
        singular, any positive scale, or zero where nothing was seen.
    :param input_damping, output_damping: see :class:`Metric`.
    :param columns: how many directions are kept; None for all min(out, in). The kept ones do not depend on it.

    Outputs that the loss does not depend on are not worth a direction:

    >>> weight, outputs = torch.diag(torch.tensor([3.0, 2.0])), torch.tensor([0.0, 1.0])
    >>> options = {"input_damping": 1e-6, "output_damping": 1e-6, "columns": None}
    >>> spectrum = two_sided_spectrum(weight=weight, inputs=torch.eye(2), outputs=outputs, **options)
    >>> factors = spectrum.cut(1)
    >>> (factors.a @ factors.b).round().abs().diagonal().tolist()
    [0.0, 2.0]
    """
    return spectrum_of_metrics(weight, Metric(inputs, input_damping), Metric(outputs, output_damping), columns)


def spectrum_of_metrics(weight: Tensor, inputs: Metric, outputs: Metric, columns: int | None) -> TwoSidedSpectrum:
    """:func:`two_sided_spectrum` from its metrics: matrices that share an input share its metric, and so its root."""
    w = weight.double()
    if solves_inputs(weight):
        root = inputs.root
        values, vectors = _leading(root.congruent(w.T @ outputs.times(w)), columns)
        reduce, expand = root.times(vectors), root.transposed_solve(vectors).T
        rows, energy = expand, torch.ones_like(values)  # of the rows of B under the metric: V^T M^-1 (M M^T) M^-T V
    else:
        root = outputs.root
        values, vectors = _leading(root.congruent(w @ inputs.times(w.T)), columns)
        reduce, expand = root.transposed_solve(vectors), root.times(vectors).T
        rows, energy = expand @ w, values  # U^T L^T (W C W^T) L U
    return TwoSidedSpectrum(
        weight=weight,
        reduce=reduce.float().contiguous(),
        expand=expand.float().contiguous(),
        values=values.float(),
        # A direction whose energy on the tokens is below what the damping alone gives it.
        weak=energy[: len(rows)] <= 2 * inputs.added * rows.square().sum(1),
    )


def stacked(spectra: Sequence[TwoSidedSpectrum], weight: Tensor) -> TwoSidedSpectrum:
    """Stack those of the experts of one fused matrix [experts, out, in]."""
    names = ("reduce", "expand", "values", "weak")
    parts = {name: torch.stack([getattr(spectrum, name) for spectrum in spectra]) for name in names}
    return TwoSidedSpectrum(weight=weight, **parts)


def shrunk(moment: Tensor, share: float) -> Tensor:
    """Take a share off the entries of a moment [d, d] outside of its diagonal; a diagonal [d] stays."""
    if moment.dim() == 1 or share == 0:
        return moment
    return (1 - share) * moment + share * torch.diag(moment.diagonal())


def root_of(moment: Tensor) -> Root:
    """Compute a root of a damped moment: Cholesky's, or one from eigenvalues where rounding has left one below zero."""
    if moment.dim() == 1:
        return Root(moment.sqrt())
    lower, failed = torch.linalg.cholesky_ex(moment)
    if not int(failed):
        return Root(lower)
    values, vectors = torch.linalg.eigh(moment)
    floor = float(values[-1]) * len(values) * torch.finfo(values.dtype).eps
    # The QR makes it triangular: R^T R = V S V^T.
    return Root(torch.linalg.qr((vectors * values.clamp_min(floor).sqrt()).T).R.T)


def predicted_rise(values: Tensor, rank: int) -> float:
    """Half the squared singular values after the first ``rank``, of all experts: the rise of the loss in nats."""
    return 0.5 * float(values[..., rank:].double().sum())


def _leading(moment: Tensor, columns: int | None) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a symmetric matrix, descending, and the first of their vectors."""
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0).clamp_min(0), vectors.flip(1)[:, :columns]


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in float64, experts one by one: all of them in float64 would be large."""
    if left.dim() == 2:
        return (left.double() @ right.double()).float()
    return torch.stack([_products(one, other) for one, other in zip(left, right, strict=True)])
