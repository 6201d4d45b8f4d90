"""Find the matrices that may be factorised: linears in blocks, fused experts, and the embedding and the head."""

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from lillama.algebra.ranks import candidate_ranks, dense_parameters, exact_rank, factor_parameters, largest_saving_rank
from lillama.config import FactorForm, Scope, TargetsConfig
from lillama.core.errors import ConfigError
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.inputs import check_inputs
from lillama.model.lowrank import expert_matrices, is_fused_experts, is_table, tied_head
from lillama.model.observe import called_modules
from lillama.model.sharing import shared_parameters

log = logging.getLogger(__name__)
ROUTERS = {"router", "gate", "shared_expert_gate"}  # dense, unless they are asked for
READ_BY_WEIGHT = ("dt_proj",)  # Mamba's and Jamba's: the weight is used, the module is never called


@dataclass(frozen=True, slots=True)
class Target:
    """One matrix: its module's full name, the index of its block, and its shape [out, in].

    ``copies`` is 1, or the number of experts that a fused parameter holds: they share one rank. ``form`` is how its
    factors would be stored.
    """

    name: str
    block: int
    shape: tuple[int, int]
    copies: int = 1
    form: FactorForm = FactorForm.plain

    @property
    def parameters(self) -> int:
        """Parameters of the dense matrix, all copies together."""
        return self.copies * dense_parameters(self.shape)

    @property
    def largest_rank(self) -> int:
        """Return the largest rank at which the factors are smaller than the matrix; 0 where there is none."""
        return largest_saving_rank(self.shape, self.form)

    def cost(self, rank: int) -> int:
        """Parameters of the factors at a rank, all copies together."""
        return self.copies * factor_parameters(self.shape, rank, self.form)

    def saves(self, rank: int) -> bool:
        """Tell whether the factors at a rank are smaller than the matrix."""
        return rank <= self.largest_rank

    def candidates(self, *, k: int, m: int) -> list[int]:
        """Return the ranks k, k + m, ... that save, ascending."""
        return candidate_ranks(self.shape, k=k, m=m, form=self.form)

    def rank_of_share(self, share: float) -> float:
        """Return the rank, not rounded, at which the factors have this share of the matrix's parameters."""
        return exact_rank(self.shape, share * dense_parameters(self.shape), self.form)

    def multiplied(self, rank: int) -> int:
        """Columns of B at a rank; those of an identity are multiplied by nobody."""
        return self.shape[1] - (rank if self.form is FactorForm.pivoted else 0)

    def indices(self) -> int:
        """Integers that are stored beside the factors, all copies together: the order of the columns."""
        return self.copies * self.shape[1] if self.form is FactorForm.pivoted else 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Shape of a model as a plan sees it: its parameters and its target matrices, in module order.

    ``every`` holds the matrices that are no targets too: a saved plan may name them. ``table`` names the embedding that
    the model also predicts with, where nobody has chosen what to replace: a strategy may take it. ``idle`` names those
    that never run (the cross-attention of a decoder without an encoder), ``shared`` those that are stored once for
    several modules: they stay dense, and no plan may name them.
    """

    parameters: int
    blocks: int
    targets: tuple[Target, ...]
    every: tuple[Target, ...] = ()
    idle: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    table: str | None = None

    @property
    def form(self) -> FactorForm:
        """Return the storage of the targets' factors; the same for all."""
        return self.targets[0].form if self.targets else FactorForm.plain

    def factored(self, form: FactorForm) -> "ModelShape":
        """Return the shape whose matrices' factors are stored in a form: what each costs at a rank depends on it."""
        targets, every = (tuple(replace(t, form=form) for t in own) for own in (self.targets, self.every))
        return replace(self, targets=targets, every=every)

    def with_table(self) -> "ModelShape":
        """Return the shape with the tied embedding among the targets, where there is one."""
        table = (target for target in self.every if target.name == self.table)
        return replace(self, targets=(*table, *self.targets))

    def within(self, scope: Scope) -> "ModelShape":
        """Return the shape with the targets of one side of an encoder-decoder only.

        :raises ConfigError: for a side that the model does not have.
        """
        if scope is Scope.all:
            return self
        targets = tuple(target for target in self.targets if scope.name in target.name.split("."))
        if not targets:
            raise ConfigError(f"strategy.scope={scope.name}: the model has no {scope.name}")
        return replace(self, targets=targets)


def model_shape(model: Any, chosen: TargetsConfig | None = None) -> ModelShape:
    """Return the shape of a model; a model on the meta device will do. Shared (tied) parameters count once.

    :param chosen: which matrices may be replaced; every linear of the blocks but routers where nothing is said.
    :raises ConfigError: for a pattern that matches nothing, a model of other stacks than the text's, one that reads
        neither tokens nor Whisper's features, or blocks that cannot be distilled one by one.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> with torch.device("meta"):
    ...     shape = model_shape(LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)))
    >>> shape.parameters, len(shape.targets), shape.targets[-1].name
    (27040, 14, 'model.layers.1.mlp.down_proj')
    """
    blocks = Blocks(model)
    stacks = [stack.name for stack in blocks.stacks]
    if len(stacks) != (2 if model.config.is_encoder_decoder else 1):
        raise ConfigError(
            f"model={type(model).__name__}: one stack, or an encoder and a decoder, is needed; has {stacks}"
        )
    check_inputs(model)
    _check_first(model, blocks)
    inside = [target for index in range(len(blocks)) for target in _inside(blocks.name(index), index, blocks[index])]
    idle, shared = _idle(model, inside), _shared(model, inside)
    inside = [target for target in inside if target.name not in {*idle, *shared}]
    ends = list(_ends(model, blocks))
    every = [*ends[:1], *inside, *ends[1:]]
    default = [target for target in inside if ROUTERS.isdisjoint(target.name.split("."))]
    tied = {target.name: tied_head(model, target.name) for target in ends}
    offered = [*(target for target in ends if tied[target.name] is not None), *default]
    chosen = chosen or TargetsConfig()
    kept = _chosen(every, offered, chosen, tied, dense=(*idle, *shared))
    table = None
    if chosen.include is None:  # nobody has chosen: the tied embedding is no target, but a strategy may take it
        table = next((target.name for target in kept if tied.get(target.name) is not None), None)
    targets = tuple(target for target in kept if target.name != table)
    parameters = sum(p.numel() for p in model.parameters())
    return ModelShape(parameters, len(blocks), targets, tuple(every), idle, shared, table)


def _check_first(model: Any, blocks: Blocks) -> None:
    """Raise where a block takes something before its hidden states, as Reformer's second stream."""
    for kind in {type(blocks[index]) for index in range(len(blocks))}:
        _, first, *rest = [*inspect.signature(kind.forward).parameters, "", ""]
        if "hidden_states" in rest:
            why = f"its blocks take {first} before their hidden states"
            raise ConfigError(f"model={type(model).__name__}: {why}; they cannot be distilled one by one")


def _idle(model: Any, targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the matrices whose modules a forward pass does not call."""
    called = called_modules(model)
    if called is None:
        return ()
    modules = {name for name, _ in model.named_modules()}
    homes = {t.name: t.name if t.name in modules else t.name.rpartition(".")[0] for t in targets}
    return _named("never run", [name for name, home in homes.items() if home not in called])


def _shared(model: Any, targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the matrices that several modules share: a cut at one place would leave the whole matrix at the others."""
    names = {name for found in shared_parameters(model).values() for name in found}
    return _named("are shared by several modules", [t.name for t in targets if names & {t.name, f"{t.name}.weight"}])


def _named(why: str, names: Sequence[str]) -> tuple[str, ...]:
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    if kinds:
        log.info("%d matrices %s and stay dense: %s", len(names), why, ", ".join(kinds))
    return tuple(names)


def _chosen(
    every: Sequence[Target],
    default: Sequence[Target],
    chosen: TargetsConfig,
    tied: Mapping[str, str | None],
    *,
    dense: Sequence[str],
) -> tuple[Target, ...]:
    """Return the targets that the patterns leave; a tied head's name stands for its embedding's."""

    def matched(key: str, patterns: Sequence[str]) -> set[Target]:
        found: set[Target] = set()
        for pattern in patterns:
            own = {t for t in every if matches(t.name, pattern) or matches(tied.get(t.name) or "", pattern)}
            if not own and any(matches(name, pattern) for name in dense):
                why = "only names matrices that never run, or that several modules share: they stay dense"
                raise ConfigError(f"model.targets.{key}: {pattern!r} {why}")
            if not own:
                names = sorted({target.name.rpartition(".")[2] for target in every})
                raise ConfigError(f"model.targets.{key}: {pattern!r} matches nothing; there are {', '.join(names)}")
            found |= own
        return found

    kept = set(default) if chosen.include is None else matched("include", chosen.include)
    kept -= matched("exclude", chosen.exclude or [])
    return tuple(target for target in every if target in kept)


def matches(name: str, pattern: str) -> bool:
    """Tell whether a shell pattern names a module: its whole name, or what comes after one of its dots."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _inside(prefix: str, index: int, block: nn.Module) -> Iterator[Target]:
    for name, module in block.named_modules(prefix=prefix):
        if is_fused_experts(module):
            for parameter, value in module.named_parameters(recurse=False):
                if value.dim() == 3:
                    experts, out_features, in_features = expert_matrices(module, parameter).shape
                    yield Target(f"{name}.{parameter}", index, (out_features, in_features), experts)
        elif _multiplies(module) and name.rpartition(".")[2] not in READ_BY_WEIGHT:
            shape = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
            yield Target(name, index, (shape[0], shape[1]))


def _multiplies(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Tell whether a module multiplies by its weight, as two factors can in its place.

    A class of linears with a forward of its own may do something else: a router gives several tensors, a grouped one
    has a weight for each part of its input. What it gives for three rows tells, by its shape.
    """
    if isinstance(module, Conv1D) or type(module).forward is nn.Linear.forward:
        return isinstance(module, nn.Linear | Conv1D)
    if not isinstance(module, nn.Linear):
        return False
    weights = {name: torch.empty_like(value, device="meta") for name, value in module.named_parameters()}
    rows = torch.empty(1, 3, module.in_features, dtype=module.weight.dtype, device="meta")
    try:
        with torch.no_grad():
            found = functional_call(module, weights, (rows,))
    except Exception as error:  # noqa: BLE001 - another kind of input, another way of computing
        log.debug("%s does not multiply by its weight: %r", type(module).__name__, error)
        return False
    return isinstance(found, Tensor) and found.shape == (1, 3, module.out_features)


def _ends(model: Any, blocks: Blocks) -> Iterator[Target]:
    """Yield the input embedding, and the prediction head where it has a matrix of its own; of one-stack models."""
    embedding, head = blocks.name(EMBEDDING), model.get_output_embeddings()
    tied = tied_head(model, embedding)
    names = shared_parameters(model).get(id(getattr(blocks[EMBEDDING], "weight", None)), [])
    shares_more = tied is not None and f"{tied}.bias" in model.all_tied_weights_keys  # BERT's way
    elsewhere = {*names} - {f"{embedding}.weight", f"{tied}.weight"}
    if len(blocks.stacks) > 1 or not is_table(blocks[EMBEDDING]) or shares_more or elsewhere:
        return
    yield Target(embedding, EMBEDDING, tuple(blocks[EMBEDDING].weight.shape))  # type: ignore[arg-type]
    if isinstance(head, nn.Linear) and tied is None:
        yield Target(blocks.name(blocks.head), blocks.head, (head.out_features, head.in_features))
