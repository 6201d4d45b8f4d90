"""What a model's blocks are, and how a run over them is observed.

A block is found by class, not by name: the outermost ``nn.ModuleList`` whose children are all
``GradientCheckpointingLayer`` (true of every decoder family in transformers 5). The arguments of a block (masks,
rotary tables) are captured for each block, because some families give each layer its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lillama.errors import ConfigError


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's blocks.

    :raises ConfigError: where the model has none, or more than one list (an encoder and a decoder).
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_is_block(child) for child in module)
    ]
    outermost = [(name, blocks) for name, blocks in found if not any(_inside(name, other) for other, _ in found)]
    if len(outermost) != 1:
        names = [name for name, _ in outermost]
        raise ConfigError(f"model={type(model).__name__}: needs exactly one list of blocks, found {names}")
    return outermost[0]


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer)


def _inside(name: str, other: str) -> bool:
    return name != other and name.startswith(f"{other}.")


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of one block: its input and output hidden states [b, t, d] and its other arguments."""

    index: int
    hidden: Tensor
    output: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def replay(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The output of ``block`` for other hidden states and the same other arguments; no hook fires."""
        return hidden_states(block.forward(hidden, *self.args, **self.kwargs))


def hidden_states(output: Any) -> Tensor:
    """A block's hidden states: blocks return a tensor, or a tuple that begins with it, by family."""
    return output[0] if isinstance(output, tuple) else output


class _LastBlockDone(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass early: nothing above the last block that matters is run."""


def run_blocks(
    model: nn.Module,
    ids: Tensor,
    *,
    mask: Tensor | None,
    wanted: range,
    on_block: Callable[[BlockCall], None],
) -> None:
    """Run a model on token ids and hand every call of the ``wanted`` blocks to ``on_block``, lowest first.

    Each call is handed on as soon as its block returns, so one block's activations live at a time. Blocks above
    the last wanted one, and the head, are not run.

    :param ids: token ids [b, t]. :param mask: true at real tokens [b, t], or None where every token is real.
    """
    _, blocks = find_blocks(model)
    hooks = [
        blocks[index].register_forward_hook(_observer(index, wanted, on_block), with_kwargs=True) for index in wanted
    ]
    try:
        with torch.no_grad():
            attention_mask = None if mask is None else mask.long()
            model(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    except _LastBlockDone:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _observer(index: int, wanted: range, on_block: Callable[[BlockCall], None]) -> Callable[..., None]:
    def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rest = dict(kwargs)
        hidden = args[0] if args else rest.pop("hidden_states")
        on_block(BlockCall(index, hidden, hidden_states(output), tuple(args[1:]), rest))
        if index == wanted[-1]:
            raise _LastBlockDone

    return observe
