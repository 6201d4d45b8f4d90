"""Hold one call of a block: its arguments and what it gave back, to be made again with other hidden states.

The arguments (masks, rotary tables, an encoder's output) are captured for each block, because some families give each
layer its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lillama.model.offload import at_work

# Of a block's arguments by path, (0, position) or (1, name), deeper for nested ones: whether a tensor has a row for
# each sequence (True) or counts for all of them (False); what is in neither way is left out.
Layout = Mapping[tuple[Any, ...], bool]


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
        """Return the block's output hidden states."""
        return hidden_states(self.result)

    def replay(self, block: nn.Module, hidden: Tensor, context: "Swap | None" = None) -> Tensor:
        """Return the output of ``block`` for other hidden states and the same other arguments; no hook fires.

        :param context: arguments to take instead of the captured ones.
        """
        args, kwargs = self.arguments(context)
        with at_work(block):
            return hidden_states(block.forward(hidden, *args, **kwargs))

    def arguments(self, context: "Swap | None") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments beside the hidden states, with what a context puts in their place."""
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
        """Tell whether anything differs."""
        return bool(self._new)

    def applied(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with every captured object that was swapped."""
        swapped = tuple(self._new.get(id(value), value) for value in args)
        return swapped, {key: self._new.get(id(value), value) for key, value in kwargs.items()}


def _differ(before: Any, after: Any) -> bool:
    return isinstance(before, Tensor) and before is not after and not torch.equal(before, after)


def hidden_states(output: Any) -> Tensor:
    """Return a block's hidden states: blocks return a tensor, or a sequence that begins with it, by family."""
    return output[0] if isinstance(output, tuple | list) else output


def block_call(index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any = None) -> BlockCall:
    """The call of a block as its hook sees it: the hidden states are the first argument, or the one of that name."""
    rest = dict(kwargs)
    hidden = args[0] if args else rest.pop(_hidden_name(rest))
    return BlockCall(index, hidden, tuple(args[1:]), rest, tuple(output) if isinstance(output, list) else output)


def with_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a block with other hidden states."""
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    return args, {**kwargs, _hidden_name(kwargs): hidden}


def _hidden_name(kwargs: Mapping[str, Any]) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
