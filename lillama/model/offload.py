"""Keep blocks in host memory and bring them to the device only while they run (``model.offload=true``).

Weights that ``from_pretrained`` maps from their files cost no memory until they are read, and are let go of after it:
what a model takes on the device is what lies outside its blocks, and the one block that runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

HOOK = "_lillama_offload_hook"
GIVES_BACK = "gives_back"  # marks the forward of a block that does not run, but gives back what is known already


class OffloadHook:
    """Moves a block's weights to a device (in another dtype, if one is given) while it runs; the originals stay.

    A block that was onloaded to learn is on the device already, and moving it again changes nothing.
    """

    def __init__(self, block: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.block, self.device, self.dtype = block, device, dtype
        self._originals: list[tuple[Tensor, Tensor]] = []
        self._depth = 0
        self._calls = 0

    def called(self, *_: Any) -> None:
        """Onload before the block runs."""
        if not self._idle:
            self._calls += 1
            self.onload()

    def returned(self, *_: Any) -> None:
        """Offload after the block has run, or failed: also where a hook failed before :meth:`called` was reached."""
        if self._calls:
            self._calls -= 1
            self.offload()

    @property
    def _idle(self) -> bool:
        return hasattr(vars(self.block).get("forward"), GIVES_BACK)

    def onload(self) -> None:
        """Move the weights to the device (re-entrant: nested calls are counted)."""
        self._depth += 1
        if self._depth > 1:
            return
        for tensor in chain(self.block.parameters(), self.block.buffers()):
            self._originals.append((tensor, tensor.data))
            tensor.data = _moved(tensor.data, self.device, self.dtype)

    def offload(self) -> None:
        """Put the originals back when the outermost call ends."""
        self._depth -= 1
        if self._depth == 0:
            for tensor, original in self._originals:
                tensor.data = original
            self._originals.clear()


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
        _add_hook(block, device, dtype)


def copy_offload_hook(copy: nn.Module, block: nn.Module) -> None:
    """Give the copy of a block an offload hook of its own, if the block has one."""
    hook = offload_hook(block)
    if hook is not None:
        for hooks in (copy._forward_pre_hooks, copy._forward_hooks, copy._forward_hooks_always_called):
            hooks.clear()
        _add_hook(copy, hook.device, hook.dtype)


def onload_block(block: nn.Module) -> None:
    """Move an offloaded block to its device: one that learns must stay there between two calls."""
    hook = offload_hook(block)
    if hook is not None:
        for tensor in chain(block.parameters(), block.buffers()):
            tensor.data = _moved(tensor.data, hook.device, hook.dtype)


def offload_block(block: nn.Module) -> None:
    """Move a block that was onloaded back to host memory."""
    if offload_hook(block) is not None:
        block.to("cpu")


@contextmanager
def onloaded(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep offloaded blocks on the device within: a model that learns as a whole has them all there."""
    for block in blocks:
        onload_block(block)
    try:
        yield
    finally:
        for block in blocks:
            offload_block(block)


@contextmanager
def at_work(block: nn.Module) -> Iterator[None]:
    """Keep the weights of an offloaded block on the device within."""
    hook = offload_hook(block)
    if hook is None:
        yield
        return
    hook.onload()
    try:
        yield
    finally:
        hook.offload()


def offload_hook(block: nn.Module) -> OffloadHook | None:
    """Return the hook of an offloaded block; None of any other."""
    return vars(block).get(HOOK)


def _add_hook(block: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    hook = OffloadHook(block, device, dtype)
    block.register_forward_pre_hook(hook.called)
    block.register_forward_hook(hook.returned, always_call=True)
    setattr(block, HOOK, hook)


def _moved(value: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
    return value.to(device, wanted)
