"""The position of a blockwise distillation, as a snapshot keeps it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Position:
    """Position of a blockwise distillation.

    ``done`` updates of ``block``, ``seen`` tokens and ``step`` updates of all blocks, ``stale`` passes of the block
    without a lower held-out loss; ``learnt``: the block is done, and what flows up to the next one is under way.
    """

    block: int
    done: int = 0
    seen: int = 0
    step: int = 0
    stale: int = 0
    learnt: bool = False

    def begin(self, block: int) -> None:
        """Begin a block, unless it is the one that is under way."""
        if block != self.block:
            self.block, self.done, self.stale, self.learnt = block, 0, 0, False
