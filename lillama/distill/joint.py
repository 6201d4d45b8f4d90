"""``distill/schedule=joint``, the paper's: all blocks learn at once from one stream of tokens (Section 4)."""

import math
from collections.abc import Iterator
from itertools import islice

from torch import Tensor
from tqdm import tqdm

from lillama.config import DistillConfig, LossConfig
from lillama.data.calibration import Calibration
from lillama.distill.batch import LossSettings, make_learner, span
from lillama.distill.learning_rate import learning_rate
from lillama.distill.progress import LoopContext, Progress, Stopwatch, part_name
from lillama.distill.relay import Relay, check_shareable, exchange
from lillama.distill.update import TrainStep, finite
from lillama.model.inputs import Batch
from lillama.model.student import Student


def learn_jointly(
    student: Student, data: Calibration, config: DistillConfig, loss: LossConfig, context: LoopContext
) -> None:
    """Distil every block of a student by local updates; the student's blocks are changed in place.

    :param data: calibration tokens, read ``config.epochs`` times.
    :raises DivergedError: for a loss that is not finite; it names the block and the step.
    """
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    course = _Course(student, config, loss, context, steps=steps)
    first, seen = course.begin()
    bar = tqdm(total=data.tokens * config.epochs, initial=seen, desc="distil", unit="tok", disable=not context.progress)
    with bar, context.under_way():
        for step, batch in enumerate(_batches(student, data, config, first), first):
            watch = Stopwatch()
            lr = learning_rate(step, steps, peak=config.lr, warmup=config.warmup, shape=config.lr_schedule)
            losses = finite(course.step(batch, lr, step + 1), step=step, seen=seen)
            before, seen = seen, seen + batch.tokens
            if step + 1 == steps:  # before the last step is told: what is measured then is what is kept
                course.finish()
            state = Progress(step, seen, losses, lr, watch.lap(batch.tokens))
            bar.update(batch.tokens)
            bar.set_postfix(loss=f"{state.loss:.4f}")
            context.on_step(state)
            course.after(step + 1, before, seen)
    course.finish()  # also where a snapshot of the last step left nothing to do
    course.share()


class _Course:
    """The learners of this process, and how its steps go together with those of others."""

    def __init__(
        self, student: Student, config: DistillConfig, loss: LossConfig, context: LoopContext, *, steps: int
    ) -> None:
        self.steps = steps
        team, blocks, loss_settings = context.team, student.teacher_blocks, LossSettings.of(config, loss)
        everyone = span(student.blocks)
        wanted = team.part_of_blocks(everyone, student.blocks)
        self.student, self.config, self.context = student, config, context
        own = [index for index in student.blocks if index in wanted]
        self.learners = {index: make_learner(student, index, config, loss) for index in own}
        self.relay = None
        if team.shares_blocks:
            check_shareable(student, config)
            learning = list(student.blocks)
            self.relay = Relay(blocks, self.learners, loss_settings, wanted=wanted, learning=learning, team=team)
        self.train_step = TrainStep(blocks, self.learners, loss_settings, config, team, teach=self.relay)

    def begin(self) -> tuple[int, int]:
        """From the start or a snapshot: the first step to make, and the tokens seen before it."""
        position = self.context.restore(self.learners)
        if position is None:
            self._save(0, 0)
            return 0, 0
        self.share()
        self.context.point(position["tokens"])  # the run may have been killed while it was measured
        return position["step"], position["tokens"]

    def step(self, batch: Batch, lr: float, number: int) -> dict[int, Tensor]:
        """One update of every learner; the losses that this process knows of."""
        if self.relay is not None:
            self.relay.begin(self.context.save_wanted(number, last=number == self.steps))
        return self.train_step.step(batch, lr)

    def finish(self) -> None:
        """Put back the weights to keep."""
        for learner in self.learners.values():
            learner.finish()

    def after(self, step: int, before: int, tokens: int) -> None:
        """Save a snapshot where one is due after a step, and measure a point of the curve where its mark was passed."""
        context, mark = self.context, self.context.at_mark(before, tokens)
        wanted = context.save_wanted(step, last=step == self.steps)
        due = context.team.any_rank(wanted) if self.relay is None else self.relay.finish()
        if due or mark:
            self._save(step, tokens)
        if mark:
            self.share()
            context.point(tokens)

    def share(self) -> None:
        """Have the weights of all blocks in every process."""
        if self.relay is not None:
            exchange(self.context.team, self.student, self.config, self.relay)

    def _save(self, step: int, tokens: int) -> None:
        parts = {part_name(index): learner.state() for index, learner in self.learners.items()}
        self.context.save(step, {"step": step, "tokens": tokens}, parts)


def _batches(student: Student, data: Calibration, config: DistillConfig, first: int) -> Iterator[Batch]:
    """The batches of all epochs from step ``first`` on; the teacher's dropout is on meanwhile, where that is wanted."""
    device = next(student.teacher.parameters()).device
    student.teacher.train(config.dropout)
    every = (batch for _ in range(config.epochs) for batch in data.batches(config.batch_size, device))
    yield from islice(every, first, None)
    student.teacher.eval()
