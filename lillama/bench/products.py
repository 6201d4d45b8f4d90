"""The matrix products of a computation: recorded while it runs, then run again alone on random numbers.

Recorded are PyTorch's own operators below autograd, so the backward pass and what autocast makes of a product are seen
as they are. Identical ones (operator, shapes, strides, dtypes) are counted.
"""

import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

PLAIN = (Tensor, nn.Parameter)
DENSE = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where the two factors begin among the tensors
ATTENTION = "_scaled_dot_product_"
GROUPED = "grouped_mm"
ALIGNMENT = 64  # elements; where an argument may begin in a pool
REPEATS = 10  # of a product that occurs more often; the rest is extrapolated


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a tensor of floating-point numbers in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def span(self) -> int:
        """Elements from its first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(slots=True)
class Product:
    """A matrix product as it was called: ``count`` times, ``flops`` floating-point operations each."""

    operator: Any
    leaves: tuple[Any, ...]  # of its arguments: a Layout, or the value (integers as they were: groups, masks)
    structure: TreeSpec
    flops: int
    count: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        shapes = [list(leaf.shape) for leaf in self.leaves if isinstance(leaf, Layout)]
        return {"operator": str(self.operator), "shapes": shapes, "count": self.count, "flops": self.flops}


class Recorder(TorchDispatchMode):
    """While it is entered, notes every matrix product and every attention, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[Hashable, Product] = {}

    @property
    def products(self) -> list[Product]:
        """Return the noted products, in the order of first occurrence."""
        return list(self._found.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in PLAIN for kind in types):
            return NotImplemented  # a tensor class first says what it means, in plain tensors
        kwargs = kwargs or {}
        if is_product(operator_name(func)):
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
        known = tuple(_described(leaf) for leaf in leaves)
        key = (func, str(structure), tuple(_comparable(leaf) for leaf in known))
        if key not in self._found:
            kept = tuple(leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in known)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self._found[key] = Product(func, kept, structure, product_flops(operator_name(func), tensors))
        self._found[key].count += 1


def operator_name(func: Any) -> str:
    """Return an operator's name without its library: ``mm``."""
    return str(func._schema.name.partition("::")[2])


def is_product(name: str) -> bool:
    """Tell whether an operator is a matrix product or an attention."""
    return name in DENSE or GROUPED in name or name.startswith(ATTENTION)


def product_flops(name: str, tensors: Sequence[Tensor]) -> int:
    """Return the floating-point operations of one call, a multiplication with its addition counted as two.

    An attention counts as its matrix products over the whole square, causal or not; its backward pass as five
    products, because fused kernels compute the scores anew (as in ``torch.utils.flop_counter``).

    :param tensors: the call's tensor arguments, in order.
    """
    if name.startswith(ATTENTION):
        backward = name.endswith("backward")
        query, key, value = tensors[1:4] if backward else tensors[:3]
        *batch, length, width = query.shape
        pairs = torch.Size(batch).numel() * length * key.shape[-2]
        return 2 * pairs * (3 * width + 2 * value.shape[-1] if backward else width + value.shape[-1])
    left, right = tensors[DENSE.get(name, 0) :][:2]
    if left.dim() == 3 and right.dim() == 2:  # grouped by columns: each belongs to one of the left matrices
        return 2 * left[0].numel() * right.shape[-1]
    once = 2 * left.numel() * right.shape[-1]
    return 2 * once if GROUPED in name and name.endswith("backward") else once


def total_flops(products: Iterable[Product]) -> int:
    """Of all calls together."""
    return sum(product.count * product.flops for product in products)


@dataclass(slots=True)
class Replay:
    """Products to be run alone, on random numbers in the layouts that they were recorded with.

    All take their arguments from the same few pools, one a dtype, so memory stays that of the largest product. What it
    leaves out: the weights of different layers are one here, and may still lie in a cache.
    """

    products: Sequence[Product]
    device: torch.device
    _pools: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def seconds(self) -> float:
        """Time all calls together; of identical ones, ``REPEATS`` are run and the others extrapolated."""
        return sum(self._seconds(product) for product in self.products)

    def _seconds(self, product: Product) -> float:
        args, kwargs = self._arguments(product)
        repeats = min(product.count, REPEATS)
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(repeats):
            product.operator(*args, **kwargs)
        synchronize(self.device)
        return (time.perf_counter() - began) * product.count / repeats

    def _arguments(self, product: Product) -> Any:
        taken: dict[torch.dtype, int] = {}
        leaves = [self._placed(leaf, taken) if isinstance(leaf, Layout) else leaf for leaf in product.leaves]
        return tree_unflatten(leaves, product.structure)

    def _placed(self, layout: Layout, taken: dict[torch.dtype, int]) -> Tensor:
        """Return a tensor with this layout behind what is taken of its pool already."""
        start = taken.get(layout.dtype, 0)
        taken[layout.dtype] = start + _aligned(layout.span)
        return self._pool(layout.dtype).as_strided(layout.shape, layout.stride, start)

    def _pool(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._pools:
            size = max(_elements(product, dtype) for product in self.products)
            self._pools[dtype] = torch.randn(size, device=self.device, dtype=dtype)
        return self._pools[dtype]


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _elements(product: Product, dtype: torch.dtype) -> int:
    return sum(_aligned(leaf.span) for leaf in product.leaves if isinstance(leaf, Layout) and leaf.dtype == dtype)


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return Layout(tuple(leaf.shape), leaf.stride(), leaf.dtype)
    return leaf


def _comparable(leaf: Any) -> Hashable:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
