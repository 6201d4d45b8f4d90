"""What a model's blocks are, and how a run over them is observed.

A block is found by class, not by name: a stack is an outermost ``nn.ModuleList`` whose children are all
``GradientCheckpointingLayer`` (true of every family in transformers 5); an encoder-decoder has two. In a model that
brings code of its own, it is the longest list of modules of one class. Blocks are numbered through all stacks in the
order in which they run. The arguments of a block (masks, rotary tables, an encoder's output)
are captured for each block, because some families give each layer its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lillama.errors import ConfigError
from lillama.model.visit import GIVES_BACK, at_work

EMBEDDING = -1  # the index of the input embedding; the prediction head comes after the last block
# What has been computed of a model: by place (see Blocks.place), what the last block that ran there gave back.
Given = Mapping[int, Any]
# Of a block's arguments by path, (0, position) or (1, name), deeper for nested ones: whether a tensor has a row for
# each sequence (True) or counts for all of them (False); what is in neither way is left out.
Layout = Mapping[tuple[Any, ...], bool]


@dataclass(frozen=True, slots=True)
class Stack:
    """One list of blocks: its name, its modules and the numbers of its blocks."""

    name: str
    modules: nn.ModuleList
    indices: range


class Blocks:
    """A model's blocks by number: ``EMBEDDING``, 0 to n - 1 through all stacks, and n, the prediction head.

    :raises ConfigError: where the model has no stack of blocks.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stacks: list[Stack] = []
        self.layouts: dict[bool, dict[int, Layout]] = {}  # of calls without and with padding, see model/rows.py
        for name, modules in _outermost_stacks(model):
            self.stacks.append(Stack(name, modules, range(len(self), len(self) + len(modules))))
        if not self.stacks:
            raise ConfigError(f"model={type(model).__name__}: has no list of blocks")

    def __len__(self) -> int:
        return sum(len(stack.modules) for stack in self.stacks)

    @property
    def head(self) -> int:
        """The number of the prediction head."""
        return len(self)

    def stack(self, index: int) -> int | None:
        """The position of the stack that holds a block; None for the embedding and the head."""
        return next((place for place, stack in enumerate(self.stacks) if index in stack.indices), None)

    def place(self, index: int) -> int:
        """Where a block stands, in the order of the run: ``EMBEDDING``, the position of its stack, the head last."""
        stack = self.stack(index)
        return stack if stack is not None else EMBEDDING if index == EMBEDDING else len(self.stacks)

    def below(self, place: int, until: int) -> list[int]:
        """The numbers of the blocks of a place that run before block ``until``."""
        if place == EMBEDDING:
            return [EMBEDDING] if until > EMBEDDING else []
        return [index for index in self.stacks[place].indices if index < until]

    def __getitem__(self, index: int) -> nn.Module:
        if index == EMBEDDING:
            return self.model.get_input_embeddings()
        if index == self.head:
            return self.model.get_output_embeddings()
        stack = self.stacks[self._stack(index)]
        return stack.modules[index - stack.indices[0]]

    def __setitem__(self, index: int, module: nn.Module) -> None:
        if index == EMBEDDING:
            self.model.set_input_embeddings(module)
        elif index == self.head:
            self.model.set_output_embeddings(module)
        else:
            stack = self.stacks[self._stack(index)]
            stack.modules[index - stack.indices[0]] = module

    def name(self, index: int) -> str:
        """The name of a block's module in the model."""
        if self.stack(index) is None:
            wanted = self[index]
            return next((name for name, module in self.model.named_modules() if module is wanted), "")
        stack = self.stacks[self._stack(index)]
        return f"{stack.name}.{index - stack.indices[0]}"

    def index_of(self, name: str) -> int:
        """The number of the block that holds a module.

        :raises LookupError: for a module outside of every block.
        """
        for stack in self.stacks:
            if name.startswith(f"{stack.name}."):
                return stack.indices[0] + int(name.removeprefix(f"{stack.name}.").partition(".")[0])
        for index in (EMBEDDING, self.head):
            if name and name == self.name(index):
                return index
        raise LookupError(f"{name} lies in no block")

    def _stack(self, index: int) -> int:
        place = self.stack(index)
        if place is None:
            raise LookupError(f"there is no block {index}")
        return place


def _outermost_stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    found = [(name, stack) for name, stack in lists if all(isinstance(b, GradientCheckpointingLayer) for b in stack)]
    if not found:  # a model with code of its own: its longest list of modules of one class
        alike = [(name, stack) for name, stack in lists if len({type(block) for block in stack}) == 1]
        found = sorted(alike, key=lambda entry: -len(entry[1]))[:1]
    return [(name, stack) for name, stack in found if not any(_inside(name, other) for other, _ in found)]


def _inside(name: str, other: str) -> bool:
    return name != other and name.startswith(f"{other}.")


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of one block: its input [b, t, d] (token ids for the embedding), its other arguments, its output.

    ``result`` is what the block returned: hidden states [b, t, d], or a tuple that begins with them; None where the
    block has not run.
    """

    index: int
    hidden: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None

    @property
    def output(self) -> Tensor:
        """The block's output hidden states."""
        return hidden_states(self.result)

    def replay(self, block: nn.Module, hidden: Tensor, context: "Swap | None" = None) -> Tensor:
        """The output of ``block`` for other hidden states and the same other arguments; no hook fires.

        :param context: arguments to take instead of the captured ones.
        """
        args, kwargs = self.arguments(context)
        with at_work(block):
            return hidden_states(block.forward(hidden, *args, **kwargs))

    def arguments(self, context: "Swap | None") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments beside the hidden states, with what a context puts in their place."""
        return (self.args, self.kwargs) if context is None else context.applied(self.args, self.kwargs)

    def joined(self, feeds: "Sequence[tuple[Tensor, Swap | None]]", layout: Layout) -> "BlockCall | None":
        """One call for several hidden states [b, t, d] at once, one after the other in its batch.

        None where it is not known how an argument belongs to the batch: its calls are then made one by one.
        """
        arguments = [self.arguments(context) for _, context in feeds]
        try:
            args, kwargs = _joined(arguments, layout)
        except _NotOfTheBatch:
            return None
        return BlockCall(self.index, torch.cat([hidden for hidden, _ in feeds]), args, kwargs)


class _NotOfTheBatch(Exception):  # noqa: N818 - control flow, not an error
    """An argument that cannot be joined along the batch."""


def _joined(values: Sequence[Any], layout: Layout, path: tuple[Any, ...] = ()) -> Any:
    """Arguments of several calls as those of one: rows [batch, ...] one after the other, what has none as it is."""
    first = values[0]
    if isinstance(first, Tensor):
        return _joined_rows(values, layout.get(path))
    if type(first) is dict:
        return {key: _joined([value[key] for value in values], layout, (*path, key)) for key in first}
    if type(first) in (tuple, list):
        parts = enumerate(zip(*values, strict=True))
        return type(first)(_joined(part, layout, (*path, position)) for position, part in parts)
    if all(value is first for value in values):
        return first
    raise _NotOfTheBatch


def _joined_rows(values: Sequence[Tensor], by_row: bool | None) -> Tensor:
    if by_row:
        return torch.cat(list(values))
    if by_row is None or any(value is not values[0] for value in values):
        raise _NotOfTheBatch
    return values[0]  # it counts for every row


class Swap:
    """Arguments of one run in the place of those of another: the student's encoder output for the teacher's."""

    def __init__(self, old: BlockCall, new: BlockCall) -> None:
        pairs = [*zip(old.args, new.args, strict=True), *((old.kwargs[key], new.kwargs[key]) for key in old.kwargs)]
        self._new = {id(before): after for before, after in pairs if _differ(before, after)}
        self._held = pairs  # ids stay theirs as long as the objects live

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self._new)

    def applied(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every captured object that was swapped."""
        swapped = tuple(self._new.get(id(value), value) for value in args)
        return swapped, {key: self._new.get(id(value), value) for key, value in kwargs.items()}


def _differ(before: Any, after: Any) -> bool:
    return isinstance(before, Tensor) and before is not after and not torch.equal(before, after)


def hidden_states(output: Any) -> Tensor:
    """A block's hidden states: blocks return a tensor, or a sequence that begins with it, by family."""
    return output[0] if isinstance(output, tuple | list) else output


class _Done(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass early: nothing above the last block that matters is run."""


def run_blocks(
    blocks: Blocks,
    inputs: Mapping[str, Any],
    *,
    wanted: Sequence[int],
    on_block: Callable[[BlockCall], None],
    given: Given | None = None,
) -> None:
    """Run a model and hand every call of the ``wanted`` blocks to ``on_block``, lowest first.

    Each call is handed on as soon as its block returns, so one block's activations live at a time. Blocks above
    the last wanted one, and the head, are not run.

    :param inputs: the keyword arguments of the model. :param wanted: block numbers, ascending.
    :param given: what the blocks below the first wanted one give back, where that is known; they are then not run.
    """

    def observe(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not _SUBSTITUTING.get():
                on_block(block_call(index, args, kwargs, output))

        return hook

    def stop(*_: Any) -> None:
        if not _SUBSTITUTING.get():
            raise _Done

    # First of a block's hooks: while it looks on, the weights of a block that only visits the device are still there.
    hooks = [blocks[index].register_forward_hook(observe(index), prepend=True, with_kwargs=True) for index in wanted]
    hooks.append(blocks[wanted[-1]].register_forward_hook(stop))
    try:
        with torch.no_grad(), _returning(blocks, given or {}, until=wanted[0]):
            blocks.model(**inputs)
    except _Done:
        pass
    finally:
        for hook in hooks:
            hook.remove()


# True while `call_after` runs a model inside a hook of `run_blocks`, whose other hooks are not meant then.
_SUBSTITUTING: ContextVar[bool] = ContextVar("substituting", default=False)


def call_after(
    blocks: Blocks, inputs: Mapping[str, Any], *, given: Given, until: int, gradients: bool = False
) -> BlockCall:
    """How block ``until`` is called when the blocks below it give back what is ``given``; none of those is run.

    :param gradients: whether they flow from the call back to the embedding and to what is given.

    What lies between two stacks, before the first block and after the last (scaling, positions, the final norm, the
    way from encoder to decoder) is the model's own code, whatever the family.
    """
    found: list[BlockCall] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(block_call(until, args, kwargs))
        raise _Done

    hook = blocks[until].register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    token = _SUBSTITUTING.set(True)
    try:
        with torch.set_grad_enabled(gradients), _returning(blocks, given, until):
            blocks.model(**inputs)
    except _Done:
        pass
    finally:
        _SUBSTITUTING.reset(token)
        hook.remove()
    return found[0]


def output_after(blocks: Blocks, inputs: Mapping[str, Any], *, given: Given) -> Any:
    """Run a model whose blocks all give back what is ``given`` for their place: what follows the last block, its head.

    Gradients flow where the caller has turned them on, back to what is given.
    """
    token = _SUBSTITUTING.set(True)
    try:
        with _returning(blocks, given, blocks.head):
            return blocks.model(**inputs)
    finally:
        _SUBSTITUTING.reset(token)


@contextmanager
def _returning(blocks: Blocks, given: Given, until: int) -> Iterator[None]:
    """The blocks below ``until`` for which something is given do nothing but give it back."""
    replaced: list[tuple[nn.Module, Any]] = []
    for place, result in given.items():
        for module in (blocks[index] for index in blocks.below(place, until)):
            replaced.append((module, vars(module).get("forward")))
            module.forward = _gives_back(result)
    try:
        yield
    finally:
        for module, forward in reversed(replaced):
            del module.forward
            if forward is not None:  # one that was put there before: a compiled one, or that of an outer call
                module.forward = forward


def _gives_back(result: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return result

    setattr(forward, GIVES_BACK, True)
    return forward


def block_call(index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any = None) -> BlockCall:
    """The call of a block as its hook sees it: the hidden states are the first argument, or the one of that name."""
    rest = dict(kwargs)
    hidden = args[0] if args else rest.pop(_hidden_name(rest))
    return BlockCall(index, hidden, tuple(args[1:]), rest, tuple(output) if isinstance(output, list) else output)


def with_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> tuple[Any, dict[str, Any]]:
    """The arguments of a block with other hidden states."""
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    return args, {**kwargs, _hidden_name(kwargs): hidden}


def _hidden_name(kwargs: Mapping[str, Any]) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
