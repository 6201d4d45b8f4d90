"""Stable rank: how many directions a matrix, or a set of vectors, really uses (the paper's Appendix A.5)."""

import torch
from torch import Tensor


def stable_rank(matrix: Tensor) -> float:
    """Return the squares of all singular values over that of the largest, in float64; 0 of a matrix of zeros.

    :param matrix: [m, n]; of activations, a row a token.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))), stable_rank(torch.ones(3, 3))
    (2.0, 1.0)
    """
    wide = matrix.detach().double()
    tall = wide.T if wide.shape[0] < wide.shape[1] else wide
    return of_moment(tall.T @ tall)


def of_moment(moment: Tensor) -> float:
    """Return the same of vectors of which only the second moment E[x x^T] [d, d] is known, whatever their number."""
    largest = float(torch.linalg.eigvalsh(moment)[-1])
    return float(moment.trace()) / largest if largest > 0 else 0.0


def centred(moment: Tensor, mean: Tensor) -> Tensor:
    """Return the covariance [d, d] of vectors with a second moment [d, d] and a mean [d].

    Activations share one large direction, their mean, which by itself brings the stable rank down to about 1.
    """
    return moment - torch.outer(mean, mean)
