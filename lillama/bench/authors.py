"""The paper's method as its authors run it, written anew from the paper and from what a run of theirs does.

Teacher and student end with the last layer that learns, without the head. Every batch goes through the teacher once,
through the student's layers on their own inputs and again on the teacher's; every parameter of a layer that learns is
trained, uncompressed matrices and norms too, by one AdamW without warm-up and without float32 copies of its weights.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lillama.algebra.losses import feature_loss
from lillama.bench.literal import activations
from lillama.config import LossConfig, StudentInputs
from lillama.model.calls import hidden_states
from lillama.model.student import Student

LR, WEIGHT_DECAY = 8.6e-5, 0.01  # of their code; the paper has ten times the rate


class AuthorsDistillation:
    """Distils copies of a student's blocks, for decoders with one stack of blocks.

    :param student: where the copies start from; it is not changed.
    """

    def __init__(self, student: Student, loss: LossConfig) -> None:
        self.loss = loss
        self.layers = list(student.blocks)
        (stack,) = student.teacher_blocks.stacks
        with student.in_place() as compressed:
            copied = copy.deepcopy(compressed)
        count = max(self.layers) + 1
        self.teacher, self.teacher_layers = _cropped(student.teacher, stack.name, count)
        self.model, self.student_layers = _cropped(copied, stack.name, count)
        for index, layer in enumerate(self.student_layers):
            layer.requires_grad_(index in self.layers)
        learnt = [p for p in self.student_layers.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=LR, weight_decay=WEIGHT_DECAY)

    def step(self, ids: Tensor) -> dict[int, float]:
        """Make one step on token ids [b, t]; every layer's loss before it, a mean over the tokens."""
        teacher = activations(self.teacher, self.teacher_layers, ids)
        losses: dict[int, float] = {}

        def learn(index: int, layer: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> None:
            found, wanted = [], teacher[index]["output"]
            if self.loss.inputs is not StudentInputs.teacher:
                found.append(hidden_states(output))
            if self.loss.inputs is not StudentInputs.student:
                found.append(hidden_states(layer.forward(teacher[index]["input"], **kwargs)))  # past this hook
            total = torch.stack([feature_loss(y, wanted, distance=self.loss.distance) for y in found]).sum()
            total.backward()
            losses[index] = total.item()

        hooks = []
        for index, layer in enumerate(self.student_layers):
            hooks.append(layer.register_forward_pre_hook(_cut_off, with_kwargs=True))
            if index in self.layers:
                hooks.append(layer.register_forward_hook(partial(learn, index), with_kwargs=True))
        self.optimizer.zero_grad()
        try:
            with torch.enable_grad():
                self.model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self.optimizer.step()
        return losses


def _cropped(model: nn.Module, stack: str, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """Return what runs a stack of layers, with the first so many of them and without a head, and these layers.

    The weights are the model's own, and the model is left as it is.
    """
    parent, _, name = stack.rpartition(".")
    whole: Any = model.get_submodule(stack)
    layers = nn.ModuleList(whole[:count])
    base = copy.copy(model.get_submodule(parent))
    base._modules = {**base._modules, name: layers}
    return base, layers


def _cut_off(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Begin a graph of its own at a layer: updates are local."""
    return (args[0].detach(), *args[1:]), kwargs
