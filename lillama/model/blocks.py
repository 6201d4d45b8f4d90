"""Number a model's blocks, whatever its family.

A block is found by class, not by name: a stack is an outermost ``nn.ModuleList`` whose children are all
``GradientCheckpointingLayer`` (true of every family in transformers 5); an encoder-decoder has two. In a model that
brings code of its own, it is the longest list of modules of one class. Blocks are numbered through all stacks in the
order in which they run.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lillama.core.errors import ConfigError
from lillama.model.calls import Layout

EMBEDDING = -1  # the index of the input embedding; the prediction head comes after the last block


@dataclass(frozen=True, slots=True)
class Stack:
    """One list of blocks: its name, its modules and the numbers of its blocks."""

    name: str
    modules: nn.ModuleList
    indices: range


class Blocks:
    """A model's blocks by number: ``EMBEDDING``, 0 to n - 1 through all stacks, and n, the prediction head.

    :raises ConfigError: where the model has no stack of blocks.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stacks: list[Stack] = []
        self.layouts: dict[bool, dict[int, Layout]] = {}  # of calls without and with padding, see model/rows.py
        for name, modules in _outermost_stacks(model):
            self.stacks.append(Stack(name, modules, range(len(self), len(self) + len(modules))))
        if not self.stacks:
            raise ConfigError(f"model={type(model).__name__}: has no list of blocks")

    def __len__(self) -> int:
        return sum(len(stack.modules) for stack in self.stacks)

    @property
    def head(self) -> int:
        """Return the number of the prediction head."""
        return len(self)

    def stack(self, index: int) -> int | None:
        """Return the position of the stack that holds a block; None for the embedding and the head."""
        return next((place for place, stack in enumerate(self.stacks) if index in stack.indices), None)

    def place(self, index: int) -> int:
        """Return a block's position in a run: ``EMBEDDING``, the position of its stack, the head last."""
        stack = self.stack(index)
        return stack if stack is not None else EMBEDDING if index == EMBEDDING else len(self.stacks)

    def below(self, place: int, until: int) -> list[int]:
        """Return the numbers of the blocks of a place that run before block ``until``."""
        if place == EMBEDDING:
            return [EMBEDDING] if until > EMBEDDING else []
        return [index for index in self.stacks[place].indices if index < until]

    def __getitem__(self, index: int) -> nn.Module:
        if index == EMBEDDING:
            return self.model.get_input_embeddings()
        if index == self.head:
            return self.model.get_output_embeddings()
        stack = self.stacks[self._stack(index)]
        return stack.modules[index - stack.indices[0]]

    def __setitem__(self, index: int, module: nn.Module) -> None:
        if index == EMBEDDING:
            self.model.set_input_embeddings(module)
        elif index == self.head:
            self.model.set_output_embeddings(module)
        else:
            stack = self.stacks[self._stack(index)]
            stack.modules[index - stack.indices[0]] = module

    def name(self, index: int) -> str:
        """Return the name of a block's module in the model."""
        if self.stack(index) is None:
            wanted = self[index]
            return next((name for name, module in self.model.named_modules() if module is wanted), "")
        stack = self.stacks[self._stack(index)]
        return f"{stack.name}.{index - stack.indices[0]}"

    def index_of(self, name: str) -> int:
        """Return the number of the block that holds a module.

        :raises LookupError: for a module outside of every block.
        """
        for stack in self.stacks:
            if name.startswith(f"{stack.name}."):
                return stack.indices[0] + int(name.removeprefix(f"{stack.name}.").partition(".")[0])
        for index in (EMBEDDING, self.head):
            if name and name == self.name(index):
                return index
        raise LookupError(f"{name} lies in no block")

    def _stack(self, index: int) -> int:
        place = self.stack(index)
        if place is None:
            raise LookupError(f"there is no block {index}")
        return place


def _outermost_stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    found = [(name, stack) for name, stack in lists if all(isinstance(b, GradientCheckpointingLayer) for b in stack)]
    if not found:  # a model with code of its own: its longest list of modules of one class
        alike = [(name, stack) for name, stack in lists if len({type(block) for block in stack}) == 1]
        found = sorted(alike, key=lambda entry: -len(entry[1]))[:1]
    return [(name, stack) for name, stack in found if not any(_inside(name, other) for other, _ in found)]


def _inside(name: str, other: str) -> bool:
    return name != other and name.startswith(f"{other}.")
