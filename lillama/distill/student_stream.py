"""Propagate the student's hidden states beside the teacher's forward pass (student inputs of Eq. 9).

Inside a stack a block's output is the next one's input. Where a stack begins, and at the head, the model's own code
lies between: it is run on the student's states, with the blocks themselves left out. A run may begin anywhere: an
:class:`BoundaryActivations` holds what has flowed up to there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.calls import BlockCall, Swap
from lillama.model.runs import Given, call_after


@dataclass(frozen=True, slots=True)
class BoundaryActivations:
    """Hidden states of teacher and student at the boundary of a block, by place (see ``Blocks.place``).

    ``teacher`` is what the last block that ran there gave back (hidden states [b, t, d], or a tuple that begins with
    them), ``student`` the student's hidden states [b, t, d], only where they differ.
    """

    teacher: Given = field(default_factory=dict)
    student: Mapping[int, Tensor] = field(default_factory=dict)

    def own(self) -> Given:
        """Return the outputs of the student's blocks, as those of the teacher."""
        own = dict(self.teacher)
        for place, hidden in self.student.items():
            result = own.get(place)
            own[place] = (hidden, *result[1:]) if isinstance(result, tuple) else hidden
        return own


class StudentStream:
    """The student's side of one batch: its hidden states and arguments at the block that the teacher has just run.

    :param blocks: the teacher's. :param arguments: the model's arguments in this batch.
    :param boundary: what has flowed up to the first block that is run; nothing where that is the model's first.
    """

    def __init__(
        self, blocks: Blocks, arguments: Mapping[str, Any], boundary: BoundaryActivations | None = None
    ) -> None:
        self.blocks = blocks
        self.arguments = arguments
        self.hidden: Tensor | None = None  # None: the teacher's
        self.context: Swap | None = None  # None: the teacher's arguments
        boundary = boundary or BoundaryActivations()
        self._teacher = dict(boundary.teacher)
        self._student = dict(boundary.student)
        self._place: int | None = None

    @property
    def is_teachers(self) -> bool:
        """Tell whether the block sees just what the teacher's sees."""
        return self.hidden is None and self.context is None

    @property
    def boundary(self) -> BoundaryActivations:
        """Return the hidden states that left the last block that ran."""
        return BoundaryActivations(dict(self._teacher), dict(self._student))

    def enter(self, call: BlockCall) -> None:
        """Move on to the block of this call of the teacher's."""
        place = self.blocks.place(call.index)
        if place == self._place:
            return
        self._place = place
        begun = place in self._teacher  # where a boundary lies in the middle of a stack
        self.hidden, self.context = self._student.get(place) if begun else None, None
        if not any(other != place for other in self._student):
            return
        own = call_after(self.blocks, self.arguments, given=self.boundary.own(), until=call.index)
        swap = Swap(call, own)  # an encoder's output, or embeddings that every block sees
        self.context = swap if swap else None
        if not 0 < place < len(self.blocks.stacks):  # a decoder begins with its own tokens, the same for both
            self.hidden = own.hidden

    def leave(self, call: BlockCall, output: Tensor | None) -> None:
        """The student's output of this block; None where it is the teacher's."""
        place = self.blocks.place(call.index)
        if place > EMBEDDING:
            for states in (self._teacher, self._student):
                states.pop(EMBEDDING, None)  # the first block's output says all
        self.hidden = output
        self._teacher[place] = call.result
        if output is None:
            self._student.pop(place, None)
        else:
            self._student[place] = output

    def at(self, call: BlockCall) -> Tensor:
        """Return the student's input of the block."""
        return call.hidden if self.hidden is None else self.hidden

    def replay(self, call: BlockCall, block: nn.Module) -> Tensor:
        """Run a block on the student's states, without learning."""
        with torch.no_grad():
            return call.replay(block, self.at(call), self.context)
