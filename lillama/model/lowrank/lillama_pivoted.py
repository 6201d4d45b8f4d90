"""A linear and an embedding as pivoted factors: r columns of B are the identity, which nobody stores or multiplies.

W = A [I B] with the columns in another order: buffers ``pivots`` [r] and ``rest`` [in - r] say which is where. Next to
plain factors of the same rank, B lacks r columns, and everything else is as it is there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lillama_modules import ORDER, LowRankEmbedding, LowRankLinear, register_order


class PivotedLinear(LowRankLinear):
    """y = A (x_pivots + B x_rest) + bias, with children ``B`` [r, in - r] and ``A`` [out, r], which has the bias."""

    pivoted = True

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False, **factory: Any) -> None:
        super().__init__(in_features, out_features, rank, bias, **factory)
        register_order(self, in_features, rank, factory.get("device"))

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self._modules["A"]
        b: Any = self._modules["B"]
        if torch.compiler.is_compiling() or not (_is_bare(a) and _is_bare(b)):
            return self.A(x.index_select(-1, self.pivots) + self.B(x.index_select(-1, self.rest)))
        # At one token a step every operation that is saved shows, in Python too: the sum is a part of B's product, and
        # neither product is called as a module, nor looked up as one.
        rows = x.reshape(-1, self.in_features)
        pivots, rest = (rows.index_select(1, self._buffers[name]) for name in ORDER)  # type: ignore[arg-type]
        inner = torch.addmm(pivots, rest, b._parameters["weight"].t())
        return F.linear(inner, a._parameters["weight"], a._parameters["bias"]).view(*x.shape[:-1], self.out_features)


class PivotedEmbedding(LowRankEmbedding):
    """Row ``id`` of A [V, r] beside its product with B [r, d - r], put into order; a tied head shares all of it."""

    pivoted = True

    def forward(self, ids: Tensor) -> Tensor:
        pivots = self.A(ids)
        back = torch.cat([self.pivots, self.rest]).argsort()
        return self.scaled(torch.cat([pivots, self.B(pivots)], -1).index_select(-1, back))


def _is_bare(linear: Any) -> bool:
    """Tell whether calling a linear is its product alone: no adapter, quantized weight, hook or other forward."""
    own = type(linear) is nn.Linear and type(linear._parameters["weight"]) is nn.Parameter
    hooked = linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks
    return own and not (hooked or "forward" in linear.__dict__)
