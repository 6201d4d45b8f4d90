"""``distill/schedule=blockwise``: a block learns to its end before the next one begins.

No gradient crosses a block, so nothing is lost by it, and the next block sees just what the compressed model will feed
it with. What flows up to a block is kept for every batch, so one dense block, one student block and one batch are on
the device, whatever the model's size.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lillama.config import BlockwiseConfig, DistillConfig, LossConfig
from lillama.core.errors import ConfigError
from lillama.data.calibration import Calibration
from lillama.distill.batch import (
    BatchResult,
    BatchTotals,
    LossSettings,
    is_tied,
    learn_batch,
    make_learner,
    parts,
    span,
    student_on,
    teacher_on,
)
from lillama.distill.boundary_store import BoundaryStore
from lillama.distill.learner import BlockLearner
from lillama.distill.learning_rate import learning_rate
from lillama.distill.position import Position
from lillama.distill.progress import LoopContext, Progress, Stopwatch, part_name
from lillama.distill.snapshot import Snapshot
from lillama.distill.student_stream import BoundaryActivations
from lillama.distill.update import TrainStep, Update, finite
from lillama.model.blocks import EMBEDDING
from lillama.model.calls import hidden_states
from lillama.model.inputs import Batch
from lillama.model.offload import offload_block
from lillama.model.student import Student


def learn_blockwise(
    student: Student, data: Calibration, config: DistillConfig, loss: LossConfig, context: LoopContext
) -> None:
    """Distil a student block by block; its blocks are changed in place.

    The tokens that are told with a step are those of the average block: at the end, all of them.

    :param data: calibration tokens, read ``config.epochs`` times by every block.
    :raises ConfigError: for what this schedule cannot do. :raises DivergedError: for a loss that is not finite.
    """
    if is_tied(student, config):
        raise ConfigError("distill/schedule=blockwise: a low-rank embedding is tied to the head; use joint")
    course = _Course(student, data, config, loss, context)
    position = Position(**context.start.position) if context.start else Position(block=course.wanted[0])
    bar = tqdm(total=course.total, initial=position.seen, desc="distil", unit="tok", disable=not context.progress)
    with bar, context.under_way():
        course.reach(position)
        for index in course.wanted[course.wanted.index(position.block) :]:
            if index in student.blocks and not (position.learnt and index == position.block):
                position.begin(index)
                course.learn(position, bar)
            course.advance(index, position, ahead=course.ahead(position.done) if index == position.block else 0)
        if context.save_at_end and (context.start is None or asdict(position) != context.start.position):
            course.save(position)
    course.boundaries.clear()


class _Course:
    """The way through the blocks: what each is taught, and what flows on to the next."""

    def __init__(
        self, student: Student, data: Calibration, config: DistillConfig, loss: LossConfig, context: LoopContext
    ) -> None:
        self.student, self.blocks = student, student.teacher_blocks
        self.data, self.config, self.loss, self.context = data, config, loss, context
        self.settings = config.schedule
        assert isinstance(self.settings, BlockwiseConfig)
        self.loss_settings = LossSettings.of(config, loss)
        self.wanted = list(span(student.blocks))
        self.device = next(student.teacher.parameters()).device
        self.count = math.ceil(len(data) / config.batch_size)
        held = math.ceil(self.settings.heldout * self.count)
        if held and self.count < 2:
            raise ConfigError("distill.schedule.heldout: all sequences are one batch; lower distill.batch_size")
        self.learning = range(max(self.count - held, 1))
        self.heldout = range(len(self.learning), self.count) if held else range(0)
        self.steps = config.epochs * len(self.learning)
        self.boundaries = BoundaryStore(self.settings.place, context.scratch, self.device)

    @property
    def total(self) -> int:
        """About how many tokens all blocks together learn from, when none stops early; for a progress bar."""
        tokens = self.data.tokens * len(self.learning) // self.count
        return tokens * self.config.epochs * len(self.student.blocks)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Return every batch with its number."""
        return enumerate(self.data.batches(self.config.batch_size, self.device))

    def parts(self, number: int, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """This process's parts of a batch, each with the number of its boundary."""
        most = math.ceil(self.config.batch_size / (self.config.micro_batch or self.config.batch_size))
        mine = parts(self.context.team.part_of(batch), self.config.micro_batch)
        return ((number * most + place, part) for place, part in enumerate(mine) if len(part))

    def reach(self, position: Position) -> None:
        """Bring what flows up to the block where the schedule stands, past blocks that have learnt already."""
        if self.context.start is not None:
            self._load_weights(self.context.start)
        if position.learnt and position.block == self.wanted[-1]:  # all have learnt: nothing flows any further
            return
        below = range(self.wanted[0])
        if below:
            for number, batch in self.batches():
                for place, part in self.parts(number, batch):
                    self.boundaries[place] = teacher_on(self.blocks, part, below, BoundaryActivations())
        for index in self.wanted[: self.wanted.index(position.block)]:
            self.advance(index, position)
        for number, batch in self.batches():
            if number < self.ahead(position.done):
                for place, part in self.parts(number, batch):
                    self.boundaries[place] = self._teacher_ahead(position.block, part, self.boundaries[place])

    def learn(self, position: Position, bar: tqdm) -> None:
        """Teach one block from where it stands to its end."""
        learner = make_learner(self.student, position.block, self.config, self.loss)
        start = self.context.start
        if start is not None and start.position["block"] == position.block:
            self.context.restore({position.block: learner})
            self.context.point(self._tokens(position))  # the run may have been killed while it was measured
        elif self.heldout:
            learner.keep_if_lower(self._heldout_loss(learner))
        if position.step == 0 and start is None:
            self.save(position, learner)
        epochs = range(position.done // len(self.learning), self.config.epochs)
        for _ in epochs:
            if self._stopped(position):
                break
            for number, batch in self.batches():
                if number in self.learning and number >= position.done % len(self.learning):
                    self._step(learner, number, batch, position, bar)
        learner.finish()
        position.learnt = True
        self.student.narrow(learner.parameters)
        offload_block(learner.block)

    def ahead(self, done: int) -> int:
        """Of how many batches the teacher's side has moved on already: in a block's last pass it does so at once."""
        return 0 if self.heldout else max(0, done - (self.steps - len(self.learning)))

    def advance(self, index: int, position: Position, *, ahead: int = 0) -> None:
        """Let every batch flow through a block, but for the teacher's side of those where it has already."""
        if index == self.wanted[-1]:
            return
        own = self.student.blocks.get(index)
        block = (own or self.blocks[index]).eval()
        for number, batch in self.batches():
            if self.context.asked_to_end():
                if position.learnt:
                    self.save(position)
                self.context.end()  # on the way back to where it stood, there is nothing new to save
            for place, part in self.parts(number, batch):
                boundary = self.boundaries[place]
                if number >= ahead:
                    boundary = self._teacher_ahead(index, part, boundary)
                if self._diverges(index, boundary):
                    hidden = student_on(self.blocks, block, part, index, boundary)
                    boundary = BoundaryActivations(
                        boundary.teacher, {**self._kept(index, boundary), self.blocks.place(index): hidden}
                    )
                self.boundaries[place] = boundary

    def save(self, position: Position, learner: BlockLearner | None = None) -> None:
        """Save the weights of every block, and all of the one that learns."""
        parts: dict[str, object] = {
            part_name(index): {"parameters": [parameter.detach() for parameter in self._weights(index)]}
            for index in self.student.blocks
            if learner is None or index != learner.index
        }
        if learner is not None:
            parts[part_name(learner.index)] = learner.state()
        self.context.save(position.step, asdict(position), parts)

    def _tokens(self, position: Position) -> int:
        """Count the tokens that the average block has seen."""
        return position.seen // len(self.student.blocks)

    def _step(self, learner: BlockLearner, number: int, batch: Batch, position: Position, bar: tqdm) -> None:
        """One update, and whatever follows it: the held-out loss after a pass, the telling, a snapshot, a point."""
        context, watch, before = self.context, Stopwatch(), self._tokens(position)
        config = self.config
        lr = learning_rate(position.done, self.steps, peak=config.lr, warmup=config.warmup, shape=config.lr_schedule)
        last = self.ahead(position.done + 1) > 0
        train_step = self._train_step(learner, number, batch, last=last)
        losses = finite(train_step.step(batch, lr), step=position.step, seen=position.seen)
        position.done, position.step = position.done + 1, position.step + 1
        position.seen += batch.tokens
        if self.heldout and position.done % len(self.learning) == 0:
            lower = learner.keep_if_lower(self._heldout_loss(learner))
            position.stale = 0 if lower else position.stale + 1
        tokens = self._tokens(position)
        bar.update(batch.tokens)
        bar.set_postfix(block=learner.index, loss=f"{losses[learner.index]:.4f}")
        context.on_step(Progress(position.step - 1, tokens, losses, lr, watch.lap(batch.tokens)))
        mark = context.at_mark(before, tokens)
        if context.team.any_rank(context.save_wanted(position.step, last=False)) or mark:
            self.save(position, learner)
        if mark:
            context.point(tokens)

    def _train_step(self, learner: BlockLearner, number: int, batch: Batch, *, last: bool) -> TrainStep:
        """Teach the block a batch, part by part; in the last pass the teacher's side moves on at once."""
        places = iter([place for place, _ in self.parts(number, batch)])

        def teach(part: Batch, whole: BatchTotals, update: Update | None) -> BatchResult:
            place = next(places)
            boundary = self.boundaries[place]
            learned = self._learn_part(learner, part, boundary, whole=whole, update=update)
            if last:
                self.boundaries[place] = self._with_teacher(learner.index, boundary, learned.boundary)
            return learned

        return TrainStep(
            self.blocks, {learner.index: learner}, self.loss_settings, self.config, self.context.team, teach=teach
        )

    def _learn_part(
        self,
        learner: BlockLearner,
        part: Batch,
        boundary: BoundaryActivations,
        *,
        whole: BatchTotals,
        update: Update | None,
    ) -> BatchResult:
        only = {learner.index: learner}
        wanted = [learner.index]
        return learn_batch(
            self.blocks, only, part, self.loss_settings, update=update, whole=whole, wanted=wanted, boundary=boundary
        )

    def _heldout_loss(self, learner: BlockLearner) -> float:
        """Return the mean loss of the batches that are held out."""
        learner.block.eval()
        total = torch.zeros((), device=self.device)
        for number, batch in self.batches():
            if number in self.heldout:
                whole = BatchTotals.of(self.blocks.model, batch)
                for place, part in self.parts(number, batch):
                    learned = self._learn_part(learner, part, self.boundaries[place], whole=whole, update=None)
                    total += learned.losses[learner.index]
                    learner.drop_gradients()
        learner.block.train(self.config.dropout)
        return float(self.context.team.all_reduce(total)) / len(self.heldout)

    def _stopped(self, position: Position) -> bool:
        assert isinstance(self.settings, BlockwiseConfig)
        return 0 < self.settings.patience <= position.stale

    def _weights(self, index: int) -> list[nn.Parameter]:
        return self.student.trained_parameters(index, self.config.train)

    @torch.no_grad()
    def _load_weights(self, start: Snapshot) -> None:
        """The weights of all blocks but the one that learns, which takes its own."""
        for index in self.student.blocks:
            if index != start.position["block"] or start.position["learnt"]:
                values = start.part(part_name(index))["parameters"]
                for parameter, value in zip(self._weights(index), values, strict=True):
                    parameter.copy_(value)

    def _diverges(self, index: int, boundary: BoundaryActivations) -> bool:
        """Tell whether the student's side of a block differs from the teacher's."""
        return self.loss_settings.own and (index in self.student.blocks or bool(boundary.student))

    def _teacher_ahead(self, index: int, part: Batch, boundary: BoundaryActivations) -> BoundaryActivations:
        return self._with_teacher(index, boundary, teacher_on(self.blocks, part, [index], boundary))

    def _with_teacher(
        self, index: int, boundary: BoundaryActivations, ahead: BoundaryActivations
    ) -> BoundaryActivations:
        """Return a boundary with the teacher's side past a block; what the student's side begins from there is kept."""
        place, student = self.blocks.place(index), dict(boundary.student)
        if self._diverges(index, boundary) and place in boundary.teacher:
            student.setdefault(place, hidden_states(boundary.teacher[place]))
        return BoundaryActivations(ahead.teacher, student)

    def _kept(self, index: int, boundary: BoundaryActivations) -> dict[int, Tensor]:
        """Return the student's states that are still needed past a block: the embedding's are not."""
        return {place: hidden for place, hidden in boundary.student.items() if place > EMBEDDING or index == EMBEDDING}
