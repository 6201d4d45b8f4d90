"""Pivoted factors: some columns of a low-rank matrix, and every other column as a combination of those.

A matrix W' = A B [out, in] of rank r has r independent columns. With these pivots before the rest, W' = L [I K] P^T:
L [out, r] are its pivot columns, K [r, in - r] says how the others are made of them, and P puts the columns back into
their order. The identity is not stored: r (out + in - r) numbers instead of r (out + in), for the same W'.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lillama.algebra.spectrum import Factors

LARGEST = 2.0  # of K's numbers: well conditioned; each further swap costs a pass over K and gains little


class PivotedFactors(NamedTuple):
    """The pivoted factors of one matrix: ``a`` [out, r], ``b`` [r, in - r], and where its columns stand.

    ``pivots`` [r] are the columns of the identity, ``rest`` [in - r] those of ``b``; of experts with [experts] before.
    """

    a: Tensor
    b: Tensor
    pivots: Tensor
    rest: Tensor

    @property
    def rank(self) -> int:
        """Return the columns of ``a``."""
        return self.a.shape[-1]


def pivoted(factors: Factors) -> PivotedFactors:
    """Turn plain factors A [out, r] and B [r, in] into pivoted ones of the same product, in float64 meanwhile.

    No number of K is above 2 in size, whatever the factors are: also where their rank is below r. Factors of
    experts have [experts] before.

    :return: L and K in the dtype of the factors, and where the pivots and the rest are, each ascending, as int32.

    >>> plain = Factors(torch.ones(4, 2), torch.eye(2, 3))
    >>> found = pivoted(plain)
    >>> [tuple(part.shape) for part in found]
    [(4, 2), (2, 1), (2,), (1,)]
    """
    if factors.b.dim() == 3:
        each = [pivoted(Factors(a, b)) for a, b in zip(factors.a, factors.b, strict=True)]
        return PivotedFactors(*(torch.stack(parts) for parts in zip(*each, strict=True)))
    a, b = factors.a.double(), factors.b.double()
    rank = b.shape[0]
    # An orthonormal basis of B's rows: which columns are pivots, and K, depend on nothing else.
    basis = torch.linalg.qr(b.T).Q.T
    pivots, rest = (places.sort().values for places in _pivots_first(basis).tensor_split([rank]))
    return PivotedFactors(
        (a @ b[:, pivots]).to(factors.a.dtype).contiguous(),
        torch.linalg.solve(basis[:, pivots], basis[:, rest]).to(factors.b.dtype).contiguous(),
        pivots.int(),
        rest.int(),
    )


def _pivots_first(basis: Tensor) -> Tensor:
    """Return the columns of a basis [r, n], those first that span the others with small coefficients.

    The pivots of an LU factorisation, then swaps of a pivot for another column for as long as a coefficient is above
    :data:`LARGEST`: each makes the pivots' determinant that many times larger, so the swaps end.

    Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov and Zamarashkin 2010 (maxvol).
    """
    rank, count = basis.shape
    exchanged = torch.linalg.lu_factor(basis.T.contiguous()).pivots.tolist()  # counted from 1, one after the other
    columns = list(range(count))
    for place, other in enumerate(exchanged):
        columns[place], columns[other - 1] = columns[other - 1], columns[place]
    order = torch.tensor(columns, device=basis.device)
    if rank == count:
        return order
    k = torch.linalg.solve(basis[:, order[:rank]], basis[:, order[rank:]])
    while True:
        row, column = divmod(int(k.abs().argmax()), count - rank)
        largest = float(k[row, column])
        if not abs(largest) > LARGEST:
            break
        # Swapping the two changes K by a matrix of rank one.
        across, along = k[row].clone(), k[:, column].clone()
        across[column] += 1
        along[row] -= 1
        k.addr_(along, across, alpha=-1 / largest)
        order[[row, rank + column]] = order[[rank + column, row]]
    return order
