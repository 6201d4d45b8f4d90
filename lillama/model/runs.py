"""Run a model block by block: observe its blocks, leave out those whose output is known."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from lillama.model.blocks import Blocks
from lillama.model.calls import BlockCall, block_call
from lillama.model.offload import GIVES_BACK

# What has been computed of a model: by place (see Blocks.place), what the last block that ran there gave back.
Given = Mapping[int, Any]


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
    """Capture the call of block ``until`` when the blocks below it give back what is ``given``; none of those is run.

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
