"""Blocks that stay in host memory and come to the device only while they run (``model.offload=true``).

Weights that ``from_pretrained`` maps from their files cost no memory until they are read, and are let go of after it:
what a model takes on the device is what lies outside its blocks, and the one block that runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

VISIT = "_lillama_visit"
GIVES_BACK = "gives_back"  # marks the forward of a block that does not run, but gives back what is known already


class OffloadHook:
    """Brings a block's weights to a device (in another dtype, if one is given) and leaves the originals where they are.

    What has come to stay (a block that learns there) is not moved.
    """

    def __init__(self, block: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.block, self.device, self.dtype = block, device, dtype
        self._home: list[tuple[Tensor, Tensor]] = []
        self._depth = 0
        self._calls = 0

    def called(self, *_: Any) -> None:
        """Before the block runs."""
        if not self._idle:
            self._calls += 1
            self.enter()

    def returned(self, *_: Any) -> None:
        """After the block has run, or failed: also where another hook failed before :meth:`called` was reached."""
        if self._calls:
            self._calls -= 1
            self.leave()

    @property
    def _idle(self) -> bool:
        return hasattr(vars(self.block).get("forward"), GIVES_BACK)

    def enter(self) -> None:
        """Bring the weights; where they are there already, count who needs them."""
        self._depth += 1
        if self._depth > 1:
            return
        for tensor in chain(self.block.parameters(), self.block.buffers()):
            self._home.append((tensor, tensor.data))
            tensor.data = _moved(tensor.data, self.device, self.dtype)

    def leave(self) -> None:
        """Put the originals back when the last one leaves."""
        self._depth -= 1
        if self._depth == 0:
            for tensor, original in self._home:
                tensor.data = original
            self._home.clear()


def offload_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Move all but a model's blocks to a device; from now on a block is there only while it runs.

    :param dtype: what floating-point weights become there; None: what they are.
    """
    known = {id(tensor) for block in blocks for tensor in chain(block.parameters(), block.buffers())}
    for tensor in chain(model.parameters(), model.buffers()):
        if id(tensor) not in known:
            tensor.data = _moved(tensor.data, device, dtype)
    for block in blocks:
        _let_visit(block, device, dtype)


def copy_offload_hook(copy: nn.Module, block: nn.Module) -> None:
    """Let the copy of a block visit by itself, if the block does."""
    visit: OffloadHook | None = vars(block).get(VISIT)
    if visit is not None:
        for hooks in (copy._forward_pre_hooks, copy._forward_hooks, copy._forward_hooks_always_called):
            hooks.clear()
        _let_visit(copy, visit.device, visit.dtype)


def onload_block(block: nn.Module) -> None:
    """Move a block that visits to its device: one that learns must not leave between two calls."""
    visit: OffloadHook | None = vars(block).get(VISIT)
    if visit is not None:
        for tensor in chain(block.parameters(), block.buffers()):
            tensor.data = _moved(tensor.data, visit.device, visit.dtype)


def offload_block(block: nn.Module) -> None:
    """Move a block that visits back to host memory."""
    if VISIT in vars(block):
        block.to("cpu")


@contextmanager
def onloaded(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep blocks that visit on the device within: a model that learns as a whole has them all there."""
    for block in blocks:
        onload_block(block)
    try:
        yield
    finally:
        for block in blocks:
            offload_block(block)


@contextmanager
def at_work(block: nn.Module) -> Iterator[None]:
    """A block's weights are on the device within, if it is one that visits."""
    visit: OffloadHook | None = vars(block).get(VISIT)
    if visit is None:
        yield
        return
    visit.enter()
    try:
        yield
    finally:
        visit.leave()


def _let_visit(block: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    visit = OffloadHook(block, device, dtype)
    block.register_forward_pre_hook(visit.called)
    block.register_forward_hook(visit.returned, always_call=True)
    setattr(block, VISIT, visit)


def _moved(value: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
    return value.to(device, wanted)
