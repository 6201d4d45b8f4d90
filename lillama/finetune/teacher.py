"""Keep the dense model beside the compressed one that learns from it, sharing the memory of what does not learn."""

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn

from lillama.model.blocks import Blocks
from lillama.model.offload import copy_offload_hook, onload_block
from lillama.model.student import Student


def dense_teacher(student: Student) -> nn.Module:
    """Make the teacher of a student a model of its own, which stays dense when the student settles.

    It costs the memory of the dense blocks that are replaced. With ``model.offload`` these stay on the host and visit
    the device; the other blocks, which both models run, move to the device.
    """
    blocks = student.teacher_blocks
    for index in range(len(blocks)):
        if index not in student.blocks:
            onload_block(blocks[index])
    return twin(student.teacher)


def twin(model: Any) -> nn.Module:
    """Copy a model without its memory: the copy's parameters and buffers share the storage of the model's.

    The copy is in evaluation mode and asks for no gradient; weights that are tied are tied in it too.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    other = copy.deepcopy(model, memo)
    own, others = Blocks(model), Blocks(other)
    for index in range(len(own)):
        copy_offload_hook(others[index], own[index])
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
