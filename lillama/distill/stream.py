"""What the compressed model would feed its own blocks with, beside a run of the teacher (Eq. 9).

Inside a stack a block's output is the next one's input. Where a stack begins, and at the head, the model's own code
lies between: it is run on the student's states, with the blocks themselves left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lillama.model.blocks import EMBEDDING, BlockCall, Blocks, Swap, call_after


class StudentStream:
    """The student's side of one batch: its hidden states and arguments at the block that the teacher has just run.

    :param blocks: the teacher's. :param arguments: the model's arguments in this batch.
    """

    def __init__(self, blocks: Blocks, arguments: Mapping[str, Any]) -> None:
        self.blocks = blocks
        self.arguments = arguments
        self.hidden: Tensor | None = None  # None: the teacher's
        self.context: Swap | None = None  # None: the teacher's arguments
        self._before: BlockCall | None = None

    @property
    def is_teachers(self) -> bool:
        """Whether the block sees just what the teacher's sees."""
        return self.hidden is None and self.context is None

    def enter(self, call: BlockCall) -> None:
        """Move on to the block of this call of the teacher's."""
        before = self._before
        if before is None or self.blocks.stack(before.index) == self.blocks.stack(call.index):
            return
        if self.is_teachers:
            return
        own = self._across(before, call)
        between_stacks = None not in (self.blocks.stack(before.index), self.blocks.stack(call.index))
        # A decoder begins with its own tokens, the same for both; what differs is the encoder's output.
        self.hidden = None if between_stacks else own.hidden
        self.context = Swap(call, own) if between_stacks else None

    def leave(self, call: BlockCall, output: Tensor | None) -> None:
        """The student's output of this block; None where it is the teacher's."""
        self.hidden = output
        self._before = call

    def at(self, call: BlockCall) -> Tensor:
        """The student's input of the block."""
        return call.hidden if self.hidden is None else self.hidden

    def replay(self, call: BlockCall, block: nn.Module) -> Tensor:
        """What a dense block makes of the student's states."""
        with torch.no_grad():
            return call.replay(block, self.at(call), self.context)

    def _across(self, before: BlockCall, call: BlockCall) -> BlockCall:
        """How the model would call a block when the student's output of what comes before it were its own."""
        place = self.blocks.stack(before.index)
        passed = [EMBEDDING] if place is None else self.blocks.stacks[place].indices
        hidden = self.hidden
        result = (hidden, *before.result[1:]) if isinstance(before.result, tuple) else hidden
        return call_after(self.blocks, self.arguments, passed=passed, result=result, until=call.index)
