"""Cutting: dense linears become low-rank ones. Names that match nothing raise."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from lillama.algebra.factorize import Factors
from lillama.model.blocks import find_blocks
from lillama.model.linear import LowRankLinear


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The dense linear of this name.

    :raises LookupError: where the model has none.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise LookupError(f"the model has no module {name}") from None
    if not isinstance(module, nn.Linear):
        raise LookupError(f"{name} is a {type(module).__name__}, not a linear")
    return module


def low_rank(dense: nn.Linear, factors: Factors, *, keep_bias: bool = True) -> LowRankLinear:
    """A low-rank linear with these factors and the dense one's bias, dtype and device."""
    bias = dense.bias is not None and keep_bias
    place = {"dtype": dense.weight.dtype, "device": dense.weight.device}
    module = LowRankLinear(dense.in_features, dense.out_features, len(factors.b), bias=bias, **place)
    with torch.no_grad():
        module.A.weight.copy_(factors.a)
        module.B.weight.copy_(factors.b)
        if bias:
            module.A.bias.copy_(dense.bias)
    return module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def empty_low_rank(model: nn.Module, ranks: Mapping[str, int], dropped_biases: bool = False) -> None:
    """Replace the named linears by low-rank ones whose weights are yet to be loaded, in place.

    :raises LookupError: for a name that the model does not have.
    """
    for name, rank in ranks.items():
        dense = linear(model, name)
        bias = dense.bias is not None and not dropped_biases
        place = {"dtype": dense.weight.dtype, "device": dense.weight.device}
        replace(model, name, LowRankLinear(dense.in_features, dense.out_features, rank, bias=bias, **place))


def student_blocks(teacher: nn.Module, modules: Mapping[str, LowRankLinear]) -> dict[int, nn.Module]:
    """Copies of the blocks that hold the named linears, with these low-rank ones instead; lowest first.

    The dense matrices that are replaced are never copied.
    """
    prefix, blocks = find_blocks(teacher)
    chosen: dict[int, dict[str, LowRankLinear]] = {}
    for name, module in modules.items():
        linear(teacher, name)
        index, _, inner = name.removeprefix(f"{prefix}.").partition(".")
        chosen.setdefault(int(index), {})[inner] = module
    return {index: _copy_with(blocks[index], chosen[index]) for index in sorted(chosen)}


def _copy_with(block: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    known = {id(block.get_submodule(name)): module for name, module in modules.items()}
    return copy.deepcopy(block, memo=dict(known))
