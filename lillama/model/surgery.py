"""Cutting: a dense matrix, by the name of its target, and the low-rank module that takes its module's place."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lillama.algebra.factorize import Factors
from lillama.algebra.pivot import PivotedFactors
from lillama.config import FactorForm
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.lowrank import (
    PIVOTED,
    PLAIN,
    LowRank,
    LowRankConfig,
    LowRankEmbedding,
    LowRankExperts,
    empty_embedding,
    empty_linear,
    expert_matrices,
    head_of,
    is_fused_experts,
    tied_head,
)
from lillama.model.offload import copy_offload_hook
from lillama.model.sharing import shared_parameters

AnyFactors = Factors | PivotedFactors


def owner(model: nn.Module, name: str) -> tuple[str, str | None]:
    """Return the module that a target stands for, and the parameter where it is one of several fused ones.

    :raises LookupError: where the model has no such matrix.
    """
    parent, _, last = name.rpartition(".")
    for module, parameter in ((name, None), (parent, last)):
        try:
            found = model.get_submodule(module)
        except AttributeError:
            continue
        if parameter is None and isinstance(found, nn.Linear | Conv1D | nn.Embedding):
            return module, None
        if parameter in dict(found.named_parameters(recurse=False)) and is_fused_experts(found):
            return module, parameter
    raise LookupError(f"the model has no matrix {name}")


def matrix(model: nn.Module, name: str) -> Tensor:
    """Return the dense matrix [out, in] of a target, [experts, out, in] of a fused one.

    :raises LookupError: where the model has none.
    """
    module_name, parameter = owner(model, name)
    module: Any = model.get_submodule(module_name)
    if parameter is not None:
        return expert_matrices(module, parameter).detach()
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def matrix_at_work(model: nn.Module, name: str) -> Tensor:
    """:func:`matrix`, on the device where the model computes."""
    return matrix(model, name).to(next(model.parameters()).device)


def low_rank_modules(
    model: nn.Module, factors: Iterable[tuple[str, AnyFactors]], *, keep_bias: bool = True
) -> dict[str, LowRank]:
    """Return a low-rank module, by name, for every dense one that the factors are for; it keeps bias, dtype and device.

    The factors are taken one by one and kept in the model's own dtype: all of a large model's in float32 would not fit.
    """
    fused: dict[str, dict[str, AnyFactors]] = {}
    modules: dict[str, LowRank] = {}
    for name, pair in factors:
        module, parameter = owner(model, name)
        if parameter is None:
            modules[module] = _filled(model.get_submodule(module), pair, keep_bias)
        else:
            home = matrix(model, name)
            orders = (order.to(home.device) for order in pair[2:])
            fused.setdefault(module, {})[parameter] = type(pair)(pair.a.to(home), pair.b.to(home), *orders)
    return modules | {name: _filled_experts(model.get_submodule(name), pairs) for name, pairs in fused.items()}


def blank_modules(
    model: nn.Module, ranks: Mapping[str, int], form: FactorForm = FactorForm.plain, *, keep_bias: bool = True
) -> dict[str, LowRank]:
    """Low-rank modules of a plan whose factors are zeros, for weights (and orders) that come from elsewhere."""
    is_pivoted = form is FactorForm.pivoted

    def zeros(name: str, rank: int) -> AnyFactors:
        weight = matrix(model, name)
        *experts, out_features, in_features = weight.shape
        inner = in_features - (rank if is_pivoted else 0)
        a, b = weight.new_zeros(*experts, out_features, rank), weight.new_zeros(*experts, rank, inner)
        columns = torch.arange(in_features, dtype=torch.int32, device=weight.device).expand(*experts, -1)
        return PivotedFactors(a, b, *columns.tensor_split([rank], -1)) if is_pivoted else Factors(a, b)

    blank = ((name, zeros(name, rank)) for name, rank in ranks.items())
    return low_rank_modules(model, blank, keep_bias=keep_bias)


@torch.no_grad()
def _filled(dense: Any, factors: AnyFactors, keep_bias: bool) -> LowRank:
    embedding, is_pivoted = isinstance(dense, nn.Embedding), isinstance(factors, PivotedFactors)
    module: Any = (
        empty_embedding(dense, factors.rank, pivoted=is_pivoted)
        if embedding
        else empty_linear(dense, factors.rank, bias=keep_bias, pivoted=is_pivoted)
    )
    module.A.weight.copy_(factors.a)
    module.B.weight.copy_(factors.b)
    if isinstance(factors, PivotedFactors):
        module.pivots.copy_(factors.pivots)
        module.rest.copy_(factors.rest)
    if not embedding and module.bias is not None:
        module.bias.copy_(dense.bias)
    return module


@torch.no_grad()
def _filled_experts(dense: nn.Module, factors: Mapping[str, AnyFactors]) -> LowRank:
    """Experts with these factors; what stays dense is a copy, so that it may learn."""
    is_pivoted = any(isinstance(pair, PivotedFactors) for pair in factors.values())
    module: Any = LowRankExperts(dense, {name: pair.rank for name, pair in factors.items()}, pivoted=is_pivoted)
    for name, parameter in list(module.named_parameters(recurse=False)):
        module.register_parameter(name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    for name, child in list(dense.named_children()):
        setattr(module, name, copy.deepcopy(child))
    for name, pair in factors.items():
        module.lowrank[name].A.copy_(pair.a)
        module.lowrank[name].B.copy_(pair.b)
        if isinstance(pair, PivotedFactors):
            module.lowrank[name].pivots.copy_(pair.pivots)
            module.lowrank[name].rest.copy_(pair.rest)
    return module


def orders_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the orders of columns that pivoted factors come with, by a name of their own; the model's, not copies."""
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, LowRank))
    return {f"{name}.{place}": order for name, module in modules for place, order in enumerate(module.orders())}


def take_orders(orders: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    """Give orders of columns the values that they had; factors that were learnt in one mean nothing in another."""
    for name, order in orders.items():
        order.copy_(known[name])


def low_rank_config(model: nn.Module, ranks: Mapping[str, int], *, without_bias: bool = False) -> LowRankConfig:
    """Return the ranks of a plan sorted by kind of module, and how the factors are stored, as a checkpoint holds them.

    :param model: the compressed model. :raises LookupError: for a name that it does not have.
    """
    linear, embedding = dict[str, int](), dict[str, int]()
    experts: dict[str, dict[str, int]] = {}
    for name, rank in ranks.items():
        parent, _, last = name.rpartition(".")
        try:
            module = model.get_submodule(name)
        except AttributeError:
            experts.setdefault(parent, {})[last] = rank
            continue
        place = embedding if isinstance(module, nn.Embedding | LowRankEmbedding) else linear
        place[name] = rank
    is_pivoted = any(isinstance(module, LowRank) and module.pivoted for module in model.modules())
    return LowRankConfig(
        linear=linear,
        embedding=embedding,
        experts=experts,
        without_bias=without_bias,
        factors=PIVOTED if is_pivoted else PLAIN,
    )


def student_blocks(blocks: Blocks, modules: Mapping[str, LowRank]) -> dict[int, nn.Module]:
    """Copies of the teacher's blocks that hold the named modules, with these low-rank ones instead; lowest first.

    The dense matrices that are replaced are never copied, nor are weights that several modules share: those stay the
    teacher's own. A head that is tied to a low-rank embedding comes along.
    """
    several = shared_parameters(blocks.model)
    shared = {id(parameter): parameter for parameter in blocks.model.parameters() if id(parameter) in several}
    chosen: dict[int, dict[str, LowRank]] = {}
    for name, module in modules.items():
        index = blocks.index_of(name)
        chosen.setdefault(index, {})[name.removeprefix(blocks.name(index)).lstrip(".")] = module
    students = {index: _copy_with(blocks[index], inner, shared) for index, inner in sorted(chosen.items())}
    embedding = students.get(EMBEDDING)
    if isinstance(embedding, LowRankEmbedding) and tied_head(blocks.model, blocks.name(EMBEDDING)) is not None:
        students[blocks.head] = head_of(embedding, blocks[blocks.head])
    return students


def _copy_with(block: nn.Module, modules: Mapping[str, nn.Module], kept: Mapping[int, nn.Parameter]) -> nn.Module:
    known = {id(block.get_submodule(name)): module for name, module in modules.items()}
    student = copy.deepcopy(block, memo={**kept, **known})
    copy_offload_hook(student, block)
    return student
