"""The student: the teacher with some of its blocks replaced. Everything else is the teacher's own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lillama.config import FactorForm, Train
from lillama.core.errors import DivergedError
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.lowrank import LowRank, note_tie, tied_head
from lillama.model.sharing import shared_parameters
from lillama.model.surgery import blank_modules, orders_of, student_blocks


class Student:
    """Compressed copies of some of a teacher's blocks, by number, lowest first; ends count as blocks (see Blocks).

    The blocks stand beside the teacher while they learn; :meth:`in_place` puts them into it for a measurement and
    :meth:`settle` for good.
    """

    def __init__(self, teacher: nn.Module, modules: Mapping[str, LowRank]) -> None:
        self.teacher = teacher
        self.teacher_blocks = Blocks(teacher)
        self._shared = {*shared_parameters(teacher)}
        self.blocks = student_blocks(self.teacher_blocks, modules)
        self._narrow: dict[nn.Parameter, torch.dtype] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the blocks compute in."""
        return next(self.teacher.parameters()).dtype

    def factor_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the factors of all blocks, and the biases that they carry."""
        for block in self.blocks.values():
            for module in block.modules():
                if isinstance(module, LowRank):
                    yield from module.factor_parameters()

    def orders(self) -> dict[str, torch.Tensor]:
        """Return the orders of columns of pivoted factors, by a name of their own: what no block learns."""
        found = {index: orders_of(block) for index, block in self.blocks.items()}
        return {f"{index}.{name}": order for index, orders in found.items() for name, order in orders.items()}

    def trained_parameters(self, index: int, train: Train) -> list[nn.Parameter]:
        """Return the parameters of a block that learn: every one of its own, or the factors (and their biases) only.

        What other modules have too stays as it is, and so does a table inside a block: T5's position bias is made by
        one block for all the others.
        """
        block = self.blocks[index]
        if train is Train.block and not isinstance(block, LowRank):
            tables = (module for module in block.modules() if isinstance(module, nn.Embedding))
            still = self._shared | {id(parameter) for table in tables for parameter in table.parameters()}
            return [parameter for parameter in block.parameters() if id(parameter) not in still]
        pairs = [module for module in block.modules() if isinstance(module, LowRank)]
        return [factor for pair in pairs for factor in pair.factor_parameters()]

    def widen(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep these parameters in float32 while they learn (master weights)."""
        for parameter in parameters:
            if parameter.dtype != torch.float32:
                self._narrow[parameter] = parameter.dtype
                parameter.data = parameter.data.float()

    def narrow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Back to what the model computes in: they have learnt."""
        for parameter in parameters:
            dtype = self._narrow.pop(parameter, None)
            if dtype is not None:
                parameter.data = parameter.data.to(dtype)

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The compressed model, in evaluation mode, for as long as the context lasts.

        Master weights are narrowed meanwhile: what is measured is what a checkpoint will hold.
        """
        modes = [
            (module, module.training) for model in (self.teacher, *self.blocks.values()) for module in model.modules()
        ]
        wide = {parameter: parameter.data for parameter in self._narrow}
        dense = self._swap(self.blocks)
        self._narrow_masters()
        self.teacher.eval()
        try:
            yield self.teacher
        finally:
            self._swap(dense)
            for parameter, value in wide.items():
                parameter.data = value
            for module, training in modes:
                module.training = training

    def settle(self) -> nn.Module:
        """Make the teacher the compressed model, for good; its replaced blocks are let go."""
        self._narrow_masters()
        self._narrow.clear()
        self._swap(self.blocks)
        embedding = self.teacher_blocks.name(EMBEDDING)
        if EMBEDDING in self.blocks and (head := tied_head(self.teacher, embedding)) is not None:
            note_tie(self.teacher, embedding, head)  # transformers ties anew whenever a library asks it to
        return self.teacher.eval().requires_grad_(False)

    def _swap(self, blocks: Mapping[int, nn.Module]) -> dict[int, nn.Module]:
        own = self.teacher_blocks
        before = {index: own[index] for index in blocks}
        for index, block in blocks.items():
            own[index] = block
        return before

    def _narrow_masters(self) -> None:
        for parameter, dtype in self._narrow.items():
            parameter.data = parameter.data.to(dtype)

    def check_finite(self) -> None:
        """Raise a :class:`DivergedError` naming the first block with a weight that is not finite."""
        for index, block in self.blocks.items():
            for name, parameter in block.named_parameters():
                if not bool(parameter.isfinite().all()):
                    raise DivergedError(f"block {index}: {name} holds values that are not finite")


@torch.no_grad()
def random_student(teacher: nn.Module, ranks: Mapping[str, int], form: FactorForm = FactorForm.plain) -> Student:
    """A student whose factors are normal numbers of a scale that keeps activations finite, drawn on the device."""
    student = Student(teacher, blank_modules(teacher, ranks, form))
    for parameter in student.factor_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return student
