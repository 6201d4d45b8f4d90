"""A linear and an embedding as two low-rank factors."""

from collections.abc import Iterator
from typing import Any, ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

ORDER = ("pivots", "rest")  # the buffers of pivoted factors


class FactoredWeight(Tensor):
    """The product of two factors, computed only where arithmetic needs it; dtype, device and shape cost nothing.

    Some families ask ``linear.weight`` for its dtype at every step, fused kernels read the weight itself.
    """

    _is_hf_initialized = True  # transformers fills in what no checkpoint gave; this is given by its factors

    FREE: ClassVar[frozenset[Any]] = frozenset(
        getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "requires_grad", "is_meta")
    ) | {Tensor.size, Tensor.dim, Tensor.is_floating_point, Tensor.numel}

    @staticmethod
    def __new__(cls, a: Tensor, b: Tensor, *order: Tensor) -> "FactoredWeight":
        columns = sum(len(part) for part in order) if order else b.shape[1]
        return Tensor._make_wrapper_subclass(cls, (a.shape[0], columns), dtype=a.dtype, device=a.device)

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

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
    return product(*value.parts) if isinstance(value, FactoredWeight) else value


def product(a: Tensor, b: Tensor, *order: Tensor) -> Tensor:
    """Return the matrix of two factors: A B; of pivoted ones A [I B], with the columns put back where they belong.

    :param order: of pivoted factors, which columns are the ``pivots`` [r] and which the ``rest`` [in - r].

    Factors and order of experts have [E] before.
    """
    if not order:
        return a @ b
    columns = torch.cat([a, a @ b], -1)
    return columns.gather(-1, torch.cat(order, -1).argsort(-1).unsqueeze(-2).expand(columns.shape))


def _factored(*parts: Tensor) -> Tensor:
    """Return the product, lazily; a compiler drops one that nobody uses, and would stumble over a class of its own."""
    if torch.compiler.is_compiling():
        return product(*parts)
    return _Product.apply(*parts) if torch.is_grad_enabled() else FactoredWeight(*parts)


class _Product(torch.autograd.Function):
    """The lazy product as a node of the graph: a fused kernel takes it as an input and sends its gradient back."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return FactoredWeight(*parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *order = ctx.saved_tensors
        if not order:
            return gradient @ b.T, a.T @ gradient
        pivots, rest = (gradient.index_select(1, part) for part in order)
        return pivots + rest @ b.T, a.T @ rest, None, None


class LowRank(nn.Module):
    """A module that stands in the place of a dense one."""

    pivoted = False

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        """Return the factors, and the biases that they carry."""
        raise NotImplementedError

    def orders(self) -> Iterator[Tensor]:
        """Return the places of columns that pivoted factors come with: integers that nothing learns."""
        return (value for name, value in self.named_buffers() if name.rpartition(".")[2] in ORDER)


def register_order(module: nn.Module, features: int, rank: int, device: Any, *experts: int) -> None:
    """Give pivoted factors the buffers that say which columns are pivots, to be filled: the first ones."""
    columns = torch.arange(features, dtype=torch.int32, device=device).expand(*experts, features)
    for name, part in zip(ORDER, columns.tensor_split([rank], -1), strict=True):
        module.register_buffer(name, part.clone())


class _Pair(LowRank):
    """The factors of one matrix, as children ``A`` and ``B``."""

    A: Any
    B: Any
    pivots: Tensor  # of pivoted factors only
    rest: Tensor

    @property
    def weight(self) -> Tensor:
        """Return the product of the factors, lazily, in the shape of the dense weight [out, in] or [V, d]."""
        return _factored(*self._factors())

    def multiplied_out(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the product of the factors, in these numbers."""
        a, b, *order = self._factors()
        return product(a.to(dtype or a.dtype), b.to(dtype or b.dtype), *order)

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        yield from (*self.A.parameters(), *self.B.parameters())

    def _factors(self) -> Any:
        return (self.A.weight, self.B.weight, *((self.pivots, self.rest) if self.pivoted else ()))


class LowRankLinear(_Pair):
    """y = A (B x) + bias, with children ``B`` [r, in] and ``A`` [out, r], which carries the bias.

    Two plain ``nn.Linear`` children, so that LoRA, quantizers and exporters find what they know.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False, **factory: Any) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.B = nn.Linear(in_features - (rank if self.pivoted else 0), rank, bias=False, **factory)
        self.A = nn.Linear(rank, out_features, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    @property
    def bias(self) -> Tensor | None:
        """Return the bias [out], which A carries."""
        return self.A.bias

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


class LowRankEmbedding(_Pair):
    """Row ``id`` of A [V, r] times B [r, d]; a tied head is a :class:`LowRankLinear` with the same two parameters.

    :param scale: what the rows are multiplied by (Gemma's by the root of d) and the head's weight is not; a tensor is
        rounded to the numbers of the rows first, as transformers does.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        scale: float | Tensor = 1.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.rank = rank
        self.padding_idx = padding_idx
        self.A = nn.Embedding(num_embeddings, rank, padding_idx=padding_idx, **factory)
        self.B = Expansion(rank, embedding_dim - (rank if self.pivoted else 0), **factory)
        if self.pivoted:
            register_order(self, embedding_dim, rank, factory.get("device"))

    def forward(self, ids: Tensor) -> Tensor:
        return self.scaled(self.B(self.A(ids)))

    def scaled(self, rows: Tensor) -> Tensor:
        """Multiply rows by the embedding's scale."""
        if isinstance(self.scale, Tensor):
            return rows * self.scale.to(rows.dtype)
        return rows if self.scale == 1 else rows * self.scale

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


def is_table(module: Any) -> TypeGuard[nn.Embedding]:
    """Tell whether a module looks rows up and at most scales them by its ``embed_scale``, as Gemma's and BART's."""
    return type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))


def embedding_scale(table: Any) -> float | Tensor:
    """Return what a table multiplies its rows by: a number, or a tensor (never on the meta device) where it has one."""
    scale = getattr(table, "embed_scale", 1.0)
    if not isinstance(scale, Tensor):
        return float(scale)
    own = getattr(table, "scalar_embed_scale", None)  # what the buffer is filled with: it may be on the meta device
    return torch.tensor(float(scale) if own is None else own, device="cpu")
