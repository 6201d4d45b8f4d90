"""Fused experts (3-D parameters, one matrix an expert) with some of their matrices as low-rank factors."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lillama_modules import LowRank, product, register_order

ALIGNMENT = 16  # bytes; what a grouped matrix product asks of strides
Product = Callable[[Tensor, Tensor], Tensor]  # rows [n, in] and weights [E, out, in] to rows [n, out]


class FactorPair(nn.Module):
    """The factors of one matrix per expert, A [E, out, r] and B [E, r, in], in the place of weights [E, out, in]."""

    def __init__(self, weights: Tensor, rank: int) -> None:
        super().__init__()
        experts, out_features, in_features = weights.shape
        self.A = nn.Parameter(weights.new_empty(experts, out_features, rank))
        self.B = nn.Parameter(weights.new_empty(experts, rank, in_features))

    def forward(self, rows: Tensor, experts: Tensor, times: Product) -> Tensor:
        """Rows [n, in], sorted by expert, of the experts [n], through B and A [n, out]."""
        return times(times(rows, self.B), self.A)

    def multiplied_out(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the product of the factors [E, out, in], in these numbers."""
        return product(self.A.to(dtype or self.A.dtype), self.B.to(dtype or self.B.dtype))


class PivotedPair(FactorPair):
    """Pivoted factors, B [E, r, in - r]; every expert has its own ``pivots`` [E, r] and ``rest`` [E, in - r]."""

    pivots: Tensor
    rest: Tensor

    def __init__(self, weights: Tensor, rank: int) -> None:
        super().__init__(weights, rank)
        experts, _, in_features = weights.shape
        self.B = nn.Parameter(weights.new_empty(experts, rank, in_features - rank))
        register_order(self, in_features, rank, weights.device, experts)

    def forward(self, rows: Tensor, experts: Tensor, times: Product) -> Tensor:
        pivots, rest = (rows.gather(1, columns[experts].long()) for columns in (self.pivots, self.rest))
        return times(pivots + times(rest, self.B), self.A)

    def multiplied_out(self, dtype: torch.dtype | None = None) -> Tensor:
        return product(self.A.to(dtype or self.A.dtype), self.B.to(dtype or self.B.dtype), self.pivots, self.rest)


class LowRankExperts(LowRank):
    """Fused experts with some of their matrices factorised; works for every class of transformers' experts interface.

    The dense module's own settings, activation and gating come along; what stays dense keeps its name.
    """

    def __init__(self, dense: Any, ranks: Mapping[str, int], *, pivoted: bool = False) -> None:
        super().__init__()
        self.pivoted = pivoted
        self.__dict__.update({key: value for key, value in vars(dense).items() if key not in vars(self)})
        self._gating = type(dense)._apply_gate
        for name, child in dense.named_children():
            self.add_module(name, child)
        for name, parameter in dense.named_parameters(recurse=False):
            if name not in ranks:
                self.register_parameter(name, parameter)
        pair = PivotedPair if pivoted else FactorPair
        self.lowrank = nn.ModuleDict({name: pair(expert_matrices(dense, name), ranks[name]) for name in ranks})

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.lowrank.parameters()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return every token's weighted sum over its experts.

        :param hidden_states: [n, d]. :param top_k_index: [n, k]; an index past the last expert is skipped.
        :param top_k_weights: [n, k].
        """
        own: Any = self
        count = own.num_experts
        experts, order = top_k_index.flatten().sort(stable=True)
        token = order // top_k_index.shape[-1]
        known = experts < count
        tally = torch.zeros(count + 1, dtype=torch.long, device=order.device)
        ends = tally.scatter_add_(0, experts, torch.ones_like(experts))[:count].cumsum(0)
        experts = experts.clamp(max=count - 1)
        inner = self._project("gate_up_proj" if own.has_gate else "up_proj", hidden_states[token], experts, ends)
        inner = self._gating(self, inner) if own.has_gate else own.act_fn(inner)
        out = self._project("down_proj", inner, experts, ends)
        if getattr(self, "has_post_expert_norm", False):
            out = own.post_expert_norm(out)
        out = torch.where(known[:, None], out * top_k_weights.flatten()[order, None], 0)
        return torch.zeros_like(hidden_states).index_add_(0, token, out.to(hidden_states.dtype))

    def _project(self, name: str, rows: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        """Return the rows [n, in], sorted by expert, through their experts' matrices.

        :param experts: the rows' experts [n]. :param ends: where each expert's rows end [E].
        """
        times = partial(self._times, ends)
        dense = name not in self.lowrank
        # A pair is called as a module, so that whoever moves weights at a module's call (offloading) finds it.
        out = times(rows, expert_matrices(self, name)) if dense else self.lowrank[name](rows, experts, times)
        own: Any = self
        return out + getattr(self, f"{name}_bias")[experts] if own.has_bias else out

    def _times(self, ends: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Rows [n, in] by weights [E, out, in]: the experts one by one, or in one grouped product."""
        own: Any = self
        if own.config._experts_implementation != "eager":
            return _grouped(rows, weights, ends)
        out = rows.new_zeros(len(rows), weights.shape[1])
        begin = 0
        for weight, end in zip(weights, ends.tolist(), strict=True):
            if end > begin:
                out[begin:end] = F.linear(rows[begin:end], weight).to(out.dtype)
            begin = end
        return out


def _grouped(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """The grouped product, which asks for aligned strides: an odd rank is padded with zeros (a copy; 8k is free)."""
    from transformers.integrations.moe import _grouped_mm  # private: only models of experts depend on it

    if torch.is_autocast_enabled(rows.device.type):  # which knows nothing of grouped products
        rows, weights = (x.to(torch.get_autocast_dtype(rows.device.type)) for x in (rows, weights))
    unit = ALIGNMENT // weights.element_size()
    out_features = weights.shape[1]
    short_out, short_in = (-size % unit for size in weights.shape[1:])
    if short_out or short_in:
        rows, weights = F.pad(rows, (0, short_in)), F.pad(weights, (0, short_in, 0, short_out))
    out = _grouped_mm(rows.contiguous(), weights.transpose(1, 2), offs=ends.int())
    return out[:, :out_features]


def is_fused_experts(module: nn.Module) -> bool:
    """Tell whether a module follows transformers' experts interface: 3-D parameters, one matrix an expert."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")


def expert_matrices(module: Any, name: str) -> Tensor:
    """Return a fused parameter as [E, out, in], whichever way round the family stores it."""
    weights = getattr(module, name)
    return weights.transpose(1, 2) if module.is_transposed else weights
