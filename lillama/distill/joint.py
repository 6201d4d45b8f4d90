"""The paper's schedule: all blocks learn at once from one stream of tokens (Section 4).

The teacher runs once a batch, block by block, and each compressed block learns as soon as its twin has run. Nothing
above the last compressed block is run and nothing below the first one is run twice. The first compressed block sees
the same input from teacher and student, so its two passes of Eq. 10 are one, counted twice.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from tqdm import tqdm

from lillama.algebra.losses import feature_loss
from lillama.config import DistillConfig, Inputs, LossConfig, Reduction
from lillama.data.calibration import Calibration
from lillama.distill.learner import BlockLearner, Feed
from lillama.distill.schedule import learning_rate
from lillama.distill.stream import StudentStream
from lillama.errors import DivergedError
from lillama.model.blocks import BlockCall, run_blocks
from lillama.model.inputs import ModelInputs, model_inputs
from lillama.model.student import Student


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a distillation stands after a step (counted from 0): tokens seen, each block's loss, this step's speed."""

    step: int
    tokens: int
    losses: dict[int, float]
    lr: float
    tokens_per_second: float

    @property
    def loss(self) -> float:
        """The mean over the blocks."""
        return sum(self.losses.values()) / len(self.losses)


def distill(
    student: Student,
    data: Calibration,
    config: DistillConfig,
    loss: LossConfig,
    *,
    on_step: Callable[[Progress], None] = lambda progress: None,
    progress: bool = False,
) -> None:
    """Distil every block of a student by local updates; the student's blocks are changed in place.

    :param data: calibration tokens, read ``config.epochs`` times. :param on_step: called after every step.
    :raises DivergedError: for a loss that is not finite; it names the block and the step.
    """
    learners = make_learners(student, config, loss)
    device = next(student.teacher.parameters()).device
    batches = (batch for _ in range(config.epochs) for batch in data.batches(config.batch_size, device))
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    seen = 0
    student.teacher.train(config.dropout)
    with tqdm(total=data.tokens * config.epochs, desc="distil", unit="tok", disable=not progress) as bar:
        for step, batch in enumerate(batches):
            began = time.perf_counter()
            lr = learning_rate(step, steps, peak=config.lr, warmup=config.warmup, shape=config.schedule)
            inputs = model_inputs(student.teacher, batch)
            update = partial(_update, lr)
            try:
                losses = learn_batch(
                    student, learners, inputs, feeds=loss.inputs, update=update, masked=config.mask_padding
                )
            except DivergedError as error:
                raise DivergedError(f"{error} at step {step} ({seen} tokens seen)") from None
            seen += batch.tokens
            if step + 1 == steps:  # before the last step is told: what is measured then is what is kept
                for learner in learners.values():
                    learner.finish()
            state = Progress(step, seen, losses, lr, batch.tokens / (time.perf_counter() - began))
            bar.update(batch.tokens)
            bar.set_postfix(loss=f"{state.loss:.4f}")
            on_step(state)
    student.teacher.eval()


def make_learners(student: Student, config: DistillConfig, loss: LossConfig) -> dict[int, BlockLearner]:
    """A learner for every block of the student, with master weights where they are asked for."""
    function = partial(_loss, config=loss)
    learners = {
        index: BlockLearner(index, block, config, function, dtype=student.dtype)
        for index, block in student.blocks.items()
    }
    if config.master_weights:
        for learner in learners.values():
            student.widen(learner.parameters)
    return learners


def learn_batch(
    student: Student,
    learners: dict[int, BlockLearner],
    inputs: ModelInputs,
    *,
    feeds: Inputs,
    update: Callable[[BlockLearner, float], None],
    masked: bool = True,
) -> dict[int, float]:
    """One batch: every learner's gradients, each handed to ``update`` with its loss at once; returns the losses.

    :param masked: whether padding stays out of the losses.
    """
    blocks = student.teacher_blocks
    stream = StudentStream(blocks, inputs.arguments)
    own = feeds is not Inputs.teacher
    waiting = _shared_later(learners)
    losses: dict[int, float] = {}

    def learn(call: BlockCall) -> None:
        if own:
            stream.enter(call)
        learner = learners.get(call.index)
        if learner is None:
            changed = own and not stream.is_teachers
            stream.leave(call, stream.replay(call, blocks[call.index]) if changed else None)
            return
        mask = inputs.mask(blocks.stack(call.index)) if masked else None
        value, output = learner.backward(call, block_feeds(call, stream, feeds), mask)
        stream.leave(call, output)
        losses[call.index] = value
        if call.index not in waiting:
            update(learner, value)

    run_blocks(blocks, inputs.arguments, wanted=_wanted(learners), on_block=learn)
    return losses


def _shared_later(learners: dict[int, BlockLearner]) -> set[int]:
    """Blocks whose factors a later one has too (a tied embedding): the gradients of both are summed for one update."""
    owners = {id(p): index for index, learner in learners.items() for p in learner.parameters}
    return {index for index, learner in learners.items() if any(owners[id(p)] != index for p in learner.parameters)}


def _wanted(learners: dict[int, BlockLearner]) -> range:
    return range(min(learners), max(learners) + 1)


def block_feeds(call: BlockCall, stream: StudentStream, inputs: Inputs) -> list[Feed]:
    """What a block is fed with, and the weight of each loss (Eqs. 8 to 10); the student's own stream comes last."""
    teacher = Feed(call.hidden, 1.0)
    if inputs is Inputs.teacher:
        return [teacher]
    if stream.is_teachers:
        return [Feed(call.hidden, 2.0 if inputs is Inputs.teacher_student else 1.0)]
    student = Feed(stream.at(call), 1.0, stream.context)
    return [student] if inputs is Inputs.student else [teacher, student]


def _loss(student: Tensor, teacher: Tensor, mask: Tensor | None, *, config: LossConfig) -> Tensor:
    total = config.reduction is Reduction.sum
    return feature_loss(student, teacher, distance=config.distance, mask=mask, total=total)


def _update(lr: float, learner: BlockLearner, loss: float) -> None:
    learner.update(lr, loss)
