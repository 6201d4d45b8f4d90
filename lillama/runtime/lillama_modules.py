"""A linear and an embedding as two low-rank factors."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class FactoredWeight(Tensor):
    """A @ B, computed only where arithmetic needs it; dtype, device and shape cost nothing.

    Some families ask ``linear.weight`` for its dtype at every step, fused kernels read the weight itself.
    """

    _is_hf_initialized = True  # transformers fills in what no checkpoint gave; this is given by its factors

    FREE: ClassVar[frozenset[Any]] = frozenset(
        getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "requires_grad", "is_meta")
    ) | {Tensor.size, Tensor.dim, Tensor.is_floating_point, Tensor.numel}

    @staticmethod
    def __new__(cls, a: Tensor, b: Tensor) -> "FactoredWeight":
        return Tensor._make_wrapper_subclass(cls, (a.shape[0], b.shape[1]), dtype=a.dtype, device=a.device)

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in cls.FREE:
            return super().__torch_function__(func, types, args, kwargs)
        args, kwargs = tree_map(_computed, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return cls.__torch_function__(func, types, args, kwargs)


def _computed(value: Any) -> Any:
    return value.a @ value.b if isinstance(value, FactoredWeight) else value


def _factored(a: Tensor, b: Tensor) -> Tensor:
    """A @ B, lazily; a compiler drops a product that nobody uses, and would stumble over a class of its own."""
    if torch.compiler.is_compiling():
        return a @ b
    return _Product.apply(a, b) if torch.is_grad_enabled() else FactoredWeight(a, b)


class _Product(torch.autograd.Function):
    """The lazy product as a node of the graph: a fused kernel takes it as an input and sends its gradient back."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return FactoredWeight(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradient @ b.T, a.T @ gradient


class LowRank(nn.Module):
    """A module that stands in the place of a dense one."""

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        """The factors, and the biases that they carry."""
        raise NotImplementedError


class LowRankLinear(LowRank):
    """y = A (B x) + bias, with children ``B`` [r, in] and ``A`` [out, r], which carries the bias.

    Two plain ``nn.Linear`` children, so that LoRA, quantizers and exporters find what they know.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False, **factory: Any) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.B = nn.Linear(in_features, rank, bias=False, **factory)
        self.A = nn.Linear(rank, out_features, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    @property
    def weight(self) -> Tensor:
        """A @ B [out, in], lazily."""
        return _factored(self.A.weight, self.B.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], which A carries."""
        return self.A.bias

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        yield from (*self.A.parameters(), *self.B.parameters())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class Expansion(nn.Module):
    """x [..., r] to x B [..., d], with B [r, d] as a linear's weight has it that goes the other way."""

    def __init__(self, rank: int, features: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rank, features, **factory))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T)


class LowRankEmbedding(LowRank):
    """Row ``id`` of A [V, r] times B [r, d]; a tied head is a :class:`LowRankLinear` with the same two parameters."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, rank: int, padding_idx: int | None = None, **factory: Any
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.rank = rank
        self.padding_idx = padding_idx
        self.A = nn.Embedding(num_embeddings, rank, padding_idx=padding_idx, **factory)
        self.B = Expansion(rank, embedding_dim, **factory)

    def forward(self, ids: Tensor) -> Tensor:
        return self.B(self.A(ids))

    @property
    def weight(self) -> Tensor:
        """A @ B [V, d], lazily."""
        return _factored(self.A.weight, self.B.weight)

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        yield from (*self.A.parameters(), *self.B.parameters())

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"
