"""Run forward and backward of one batch: each student block gets its gradient right after its teacher block.

Nothing above the last block that is wanted is run and nothing below the first one is run twice. The first compressed
block sees the same input from teacher and student, so its two passes of Eq. 10 are one, counted twice. No gradient
crosses a block, so a run may end and begin between any two of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lillama.algebra.losses import feature_loss
from lillama.config import DistillConfig, LossConfig, Reduction, StudentInputs
from lillama.core.errors import ConfigError
from lillama.distill.learner import BlockLearner, Feed
from lillama.distill.student_stream import BoundaryActivations, StudentStream
from lillama.model.blocks import Blocks
from lillama.model.calls import BlockCall
from lillama.model.inputs import Batch, ModelInputs, model_inputs
from lillama.model.offload import onload_block
from lillama.model.rows import layouts_of
from lillama.model.runs import call_after, run_blocks
from lillama.model.student import Student

Learners = Mapping[int, BlockLearner]


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts of the whole batch of one update, whatever parts it is computed in (micro-batches, processes).

    ``sequences`` is how many, ``counted`` how many positions count, for each stack; None: all.
    """

    sequences: int
    counted: tuple[int | None, ...]

    @classmethod
    def of(cls, model: Any, batch: Batch) -> "BatchTotals":
        """Count the sequences and positions of a whole batch."""
        masks = model_inputs(model, batch).masks
        return cls(len(batch), tuple(None if mask is None else max(int(mask.sum()), 1) for mask in masks))

    def positions(self, stack: int | None, length: int) -> int:
        """Count the positions that count in a stack, whose sequences are ``length`` long."""
        counted = self.counted[stack or 0]
        return self.sequences * length if counted is None else counted


class BatchResult(NamedTuple):
    """Result of a batch: each block's loss (a scalar on the device), and the hidden states that left the last block."""

    losses: dict[int, Tensor]
    boundary: BoundaryActivations


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Settings of the loss: the student's inputs (Eqs. 8 to 10), the reduction, and whether padding counts."""

    inputs: StudentInputs
    total: bool = False
    masked: bool = True

    @classmethod
    def of(cls, config: DistillConfig, loss: LossConfig) -> "LossSettings":
        """Return the settings of a configuration."""
        return cls(loss.inputs, loss.reduction is Reduction.sum, config.mask_padding)

    @property
    def own(self) -> bool:
        """Tell whether the student's stream is needed."""
        return self.inputs is not StudentInputs.teacher


def make_learners(student: Student, config: DistillConfig, loss: LossConfig) -> dict[int, BlockLearner]:
    """Return a learner for every block of the student."""
    return {index: make_learner(student, index, config, loss) for index in student.blocks}


def make_learner(student: Student, index: int, config: DistillConfig, loss: LossConfig) -> BlockLearner:
    """Return a learner for a block of the student, with master weights where they are asked for."""
    function = partial(_summed, config=loss)
    onload_block(student.blocks[index])
    parameters = student.trained_parameters(index, config.train)
    learner = BlockLearner(index, student.blocks[index], parameters, config, function, dtype=student.dtype)
    if config.master_weights:
        student.widen(learner.parameters)
    return learner


def learn_batch(
    blocks: Blocks,
    learners: Learners,
    batch: Batch,
    loss_settings: LossSettings,
    *,
    update: Callable[[BlockLearner, Tensor], None] | None = None,
    whole: BatchTotals | None = None,
    wanted: Sequence[int] | None = None,
    boundary: BoundaryActivations | None = None,
) -> BatchResult:
    """Add one batch's gradients to every learner's; a learner's are handed to ``update``, with its loss, at once.

    :param blocks: the teacher's. :param whole: what the update is made of, where this batch is a part of it.
    :param wanted: the blocks to run, where not all between the first and the last learner's.
    :param boundary: what has flowed up to the first of them.
    """
    inputs = model_inputs(blocks.model, batch)
    whole = whole or BatchTotals.of(blocks.model, batch)
    wanted = wanted or span(learners)
    stream = StudentStream(blocks, inputs.arguments, boundary)
    waiting = shared_later(learners)
    layouts = layouts_of(blocks, batch) if _merges(learners, loss_settings, stream) else {}
    losses: dict[int, Tensor] = {}

    def learn(call: BlockCall) -> None:
        if loss_settings.own:
            stream.enter(call)
        learner = learners.get(call.index)
        if learner is None:
            stream.leave(call, None if stream.is_teachers else stream.replay(call, blocks[call.index]))
            return
        mask, divisor = _counted(inputs, whole, loss_settings, call, blocks.stack(call.index))
        feeds, layout = block_feeds(call, stream, loss_settings.inputs), layouts.get(call.index, {})
        value, output = learner.backward(call, feeds, mask, divisor, layout)
        stream.leave(call, output if loss_settings.own else None)
        losses[call.index] = value
        if update is not None and call.index not in waiting:
            update(learner, value)

    run_blocks(blocks, inputs.arguments, wanted=wanted, on_block=learn, given=stream.boundary.teacher)
    return BatchResult(losses, stream.boundary)


def _merges(learners: Learners, loss_settings: LossSettings, stream: StudentStream) -> bool:
    """Tell whether a block may have both inputs in one call: the first one that learns sees the teacher's alone."""
    both = loss_settings.inputs is StudentInputs.teacher_student and (
        len(learners) > 1 or bool(stream.boundary.student)
    )
    return both and any(learner.merge for learner in learners.values())


def teacher_on(
    blocks: Blocks, batch: Batch, wanted: Sequence[int], boundary: BoundaryActivations
) -> BoundaryActivations:
    """Run the ``wanted`` blocks of the teacher; the student's side stays where it was."""
    stream = StudentStream(blocks, {}, boundary)
    arguments = model_inputs(blocks.model, batch).arguments
    run_blocks(blocks, arguments, wanted=wanted, on_block=lambda call: stream.leave(call, None), given=boundary.teacher)
    return BoundaryActivations(stream.boundary.teacher, boundary.student)


def student_on(blocks: Blocks, block: nn.Module, batch: Batch, index: int, boundary: BoundaryActivations) -> Tensor:
    """Run the student's block ``index`` on the student's hidden states.

    Only ``boundary.student`` counts for the block itself: the teacher may be a block ahead.
    """
    arguments = model_inputs(blocks.model, batch).arguments
    call = call_after(blocks, arguments, given=boundary.own(), until=index)
    with torch.no_grad():
        return call.replay(block, call.hidden)


def span(learners: Mapping[int, Any]) -> range:
    """Return all blocks from the first that learns to the last."""
    return range(min(learners), max(learners) + 1)


def parts(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Return a batch in parts of at most ``size`` sequences."""
    step = size or len(batch)
    return (batch.rows(start, start + step) for start in range(0, len(batch), step))


def block_feeds(call: BlockCall, stream: StudentStream, inputs: StudentInputs) -> list[Feed]:
    """List a block's inputs with the weight of each loss (Eqs. 8 to 10); the student's own stream comes last."""
    teacher = Feed(call.hidden, 1.0)
    if inputs is StudentInputs.teacher:
        return [teacher]
    if stream.is_teachers:
        return [Feed(call.hidden, 2.0 if inputs is StudentInputs.teacher_student else 1.0)]
    student = Feed(stream.at(call), 1.0, stream.context)
    return [student] if inputs is StudentInputs.student else [teacher, student]


def is_tied(student: Student, config: DistillConfig) -> bool:
    """Tell whether two blocks learn the same factors: a low-rank embedding and the head that is tied to it."""
    trained = [id(p) for index in student.blocks for p in student.trained_parameters(index, config.train)]
    return len(set(trained)) < len(trained)


def shared_later(learners: Learners) -> set[int]:
    """Blocks whose factors a later one has too (a tied embedding): the gradients of both are summed for one update."""
    owners = {id(p): index for index, learner in learners.items() for p in learner.parameters}
    return {index for index, learner in learners.items() if any(owners[id(p)] != index for p in learner.parameters)}


def _counted(
    inputs: ModelInputs, whole: BatchTotals, loss_settings: LossSettings, call: BlockCall, stack: int | None
) -> tuple[Tensor | None, float]:
    """Mask the positions of a block's output that count, and count what their sum is divided by."""
    length = call.output.shape[1]
    if not loss_settings.masked:
        return None, 1.0 if loss_settings.total else float(whole.sequences * length)
    mask = inputs.mask(stack)
    if mask is not None and mask.shape[1] != length:
        why = f"has {length} positions for {mask.shape[1]} tokens, so padding cannot be told"
        raise ConfigError(f"block {call.index} {why}; use distill.mask_padding=false")
    return mask, 1.0 if loss_settings.total else float(whole.positions(stack, length))


def _summed(student: Tensor, teacher: Tensor, mask: Tensor | None, *, config: LossConfig) -> Tensor:
    return feature_loss(student, teacher, distance=config.distance, mask=mask, total=True)
