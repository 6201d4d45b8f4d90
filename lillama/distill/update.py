"""One update of every block that learns: a batch in parts that fit the device, on one process or several."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lillama.config import DistillConfig, OutOfMemory
from lillama.core.errors import DeviceMemoryError, DivergedError
from lillama.distill.batch import BatchResult, BatchTotals, LossSettings, learn_batch, parts, shared_later
from lillama.distill.learner import BlockLearner
from lillama.distill.parallel import SummedGradients, Team, Update
from lillama.model.blocks import Blocks
from lillama.model.inputs import Batch

log = logging.getLogger(__name__)
# Teaches one part of a batch; given what the update is made of and, with the last part, what makes it.
Part = Callable[[Batch, BatchTotals, Update | None], BatchResult]


class TrainStep:
    """Teaches learners batch by batch.

    :param teach: how one part of a batch is taught; by default all blocks at once, from the tokens up.
    """

    def __init__(
        self,
        blocks: Blocks,
        learners: Mapping[int, BlockLearner],
        loss_settings: LossSettings,
        config: DistillConfig,
        team: Team,
        *,
        teach: Part | None = None,
    ) -> None:
        self.blocks = blocks
        self.learners = learners
        self.config = config
        self.team = team
        self.micro_batch = config.micro_batch
        self.teach = teach or (
            lambda batch, whole, update: learn_batch(blocks, learners, batch, loss_settings, update=update, whole=whole)
        )

    def step(self, batch: Batch, lr: float) -> dict[int, Tensor]:
        """One update from a whole batch; each block's loss.

        :raises DeviceMemoryError: where the device has no memory for it, and nothing may be halved.
        """
        whole, mine = BatchTotals.of(self.blocks.model, batch), self.team.part_of(batch)
        summed = SummedGradients(self.team, partial(_update, lr))
        # What may have to be begun again must not be half done: updates then come after the last part.
        at_once = self.config.on_oom is OutOfMemory.stop and len(mine) > 0
        while True:
            try:
                losses = self._gradients(mine, whole, summed if at_once else None)
                break
            except torch.OutOfMemoryError as error:
                self._refuse(mine, error)
            self._halve(mine)  # past the handler, which holds what is to be let go of
        if not at_once:
            losses = losses or dict.fromkeys(self.learners, torch.zeros((), device=batch.ids.device))
            for index in sorted(self.learners.keys() - shared_later(self.learners)):
                summed(self.learners[index], losses[index])
        summed.finish()
        return self._everywhere(losses)

    def _gradients(self, batch: Batch, whole: BatchTotals, summed: SummedGradients | None) -> dict[int, Tensor]:
        """The losses of a batch, its gradients left in the parameters; with the last part ``summed`` updates them."""
        pieces = list(parts(batch, self.micro_batch)) if len(batch) else []
        sums: dict[int, Tensor] = {}
        for number, part in enumerate(pieces):
            last = number == len(pieces) - 1
            update = partial(_update_with, summed, dict(sums)) if summed is not None and last else None
            learned = self.teach(part, whole, update)
            sums = {index: loss + sums.get(index, 0.0) for index, loss in learned.losses.items()}
        return sums

    def _everywhere(self, losses: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the losses of the whole batch."""
        order = sorted(losses)
        values = self.team.all_reduce(torch.stack([losses[index].float() for index in order]))
        return dict(zip(order, values, strict=True))

    def _refuse(self, batch: Batch, error: Exception) -> None:
        """Raise a :class:`DeviceMemoryError` unless a part can be halved."""
        now, length = self._at_a_time(batch), batch.ids.shape[1]
        where = f"out of device memory with {now} sequences of {length} tokens at a time"
        if now == 1:
            raise DeviceMemoryError(
                f"{where}: set data.seq_len={length // 2}, or distill/schedule=blockwise with model.offload=true"
            ) from error
        if self.config.on_oom is OutOfMemory.stop:
            raise DeviceMemoryError(
                f"{where}: set distill.micro_batch={now // 2}, or distill.on_oom=halve to have it found"
            ) from error

    def _halve(self, batch: Batch) -> None:
        now = self._at_a_time(batch)
        log.warning("out of device memory with %d sequences at a time: going on with %d", now, now // 2)
        self.micro_batch = now // 2
        for learner in self.learners.values():
            learner.drop_gradients()
        torch.cuda.empty_cache()

    def _at_a_time(self, batch: Batch) -> int:
        return min(self.micro_batch or len(batch), len(batch))


def finite(losses: Mapping[int, Tensor], *, step: int, seen: int) -> dict[int, float]:
    """Return the losses as numbers, in one go.

    :raises DivergedError: for one that is not finite; it names the block and the step.
    """
    values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
    for index, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"block {index}: the loss is {value} at step {step} ({seen} tokens seen)")
    return values


def _update_with(summed: Update, before: Mapping[int, Tensor], learner: BlockLearner, loss: Tensor) -> None:
    """The update after the last part: with the loss of all parts."""
    summed(learner, loss + before.get(learner.index, 0.0))


def _update(lr: float, learner: BlockLearner, loss: Tensor) -> None:
    learner.update(lr, loss)
