"""The paper's method in the plainest way (Figure 7), with no cleverness: what the engine is measured against.

The compressed layers are copies in a second, whole model; forward hooks keep every layer's input and output; the
teacher's and the student's pass follow each other through all layers and the head; each layer has an AdamW of its own.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lillama.algebra.losses import feature_loss
from lillama.config import LossConfig, Reduction, StudentInputs
from lillama.model.student import Student


class LiteralDistillation:
    """Distils copies of a student's blocks in a copy of its teacher, for decoders with one stack of blocks.

    :param student: where the copies start from; it is not changed.
    """

    def __init__(self, student: Student, loss: LossConfig, *, lr: float, weight_decay: float) -> None:
        self.loss = loss
        self.teacher = student.teacher
        with student.in_place() as compressed:
            self.model = copy.deepcopy(compressed)
        self.layers = list(student.blocks)
        (stack,) = student.teacher_blocks.stacks
        self.teacher_layers = self.teacher.get_submodule(stack.name)
        self.student_layers: Any = self.model.get_submodule(stack.name)
        self.optimizers = {index: self._optimizer(index, student, lr, weight_decay) for index in self.layers}

    def _optimizer(self, index: int, student: Student, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        names = [name for name, _ in student.blocks[index].named_parameters() if ".A." in name or ".B." in name]
        for name, parameter in self.student_layers[index].named_parameters():
            parameter.requires_grad_(name in names)
        parameters = [p for p in self.student_layers[index].parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    def step(self, ids: Tensor) -> dict[int, float]:
        """One step on token ids [b, t]; every layer's loss."""
        teacher = activations(self.teacher, self.teacher_layers, ids)
        student = activations(self.model, self.student_layers, ids)
        return {index: self._learn(index, teacher[index], student[index]) for index in self.layers}

    def _learn(self, index: int, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> float:
        feeds = {
            StudentInputs.teacher: [teacher],
            StudentInputs.student: [student],
            StudentInputs.teacher_student: [teacher, student],
        }[self.loss.inputs]
        total = sum((self._distance(index, feed, teacher["output"]) for feed in feeds), torch.zeros(()))
        self.optimizers[index].zero_grad()
        total.backward()
        self.optimizers[index].step()
        return total.item()

    def _distance(self, index: int, feed: Mapping[str, Any], wanted: Tensor) -> Tensor:
        output = self.student_layers[index](feed["input"], **feed["arguments"])
        output = output[0] if isinstance(output, tuple) else output
        total = self.loss.reduction is Reduction.sum
        return feature_loss(output, wanted, distance=self.loss.distance, total=total).to("cpu")


def activations(model: nn.Module, layers: nn.Module, ids: Tensor) -> list[dict[str, Any]]:
    """Return every layer's input, other arguments and output in a pass over the whole model."""
    found: list[dict[str, Any]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        found.append({"input": args[0], "arguments": kwargs, "output": output})

    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers.children()]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found
