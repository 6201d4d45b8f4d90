"""The dense model beside the compressed one that learns from it: one of their own, and what both can share once."""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn

from lillama.model.blocks import Blocks
from lillama.model.student import Student
from lillama.model.visit import come_to_stay, visit_like


def dense_teacher(student: Student) -> nn.Module:
    """The teacher of a student as a model of its own, which stays dense when the student settles.

    It costs no memory while the student stands beside it; afterwards, the dense blocks that were replaced. Where blocks
    visit the device, those stay at home and the others, which both models run, come to stay.
    """
    blocks = student.teacher_blocks
    for index in range(len(blocks)):
        if index not in student.blocks:
            come_to_stay(blocks[index])
    return twin(student.teacher)


def twin(model: Any) -> nn.Module:
    """Another model with the same weights, held once: parameters and buffers are its own names for the same memory.

    In evaluation mode, and nothing of it learns. Weights that are tied are tied in it too.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    other = copy.deepcopy(model, memo)
    own, others = Blocks(model), Blocks(other)
    for index in range(len(own)):
        visit_like(others[index], own[index])
    return other.eval()


def keep_apart(learning: Iterable[nn.Parameter], teacher: nn.Module) -> None:
    """Give every parameter that learns memory of its own, where it shares the teacher's.

    The factors never do. Where all of a model learns, this is a second copy of whatever was not replaced: embeddings,
    norms, whole blocks. ``train=factors`` needs none.
    """
    held = {_memory(tensor) for tensor in chain(teacher.parameters(), teacher.buffers())}
    for parameter in learning:
        if _memory(parameter) in held:
            parameter.data = parameter.data.clone()


def _memory(tensor: Any) -> int:
    return tensor.untyped_storage().data_ptr()
