"""``parallel=blocks``: a process learns its own blocks from what flows up to them, and passes on what leaves them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lillama.config import DistillConfig
from lillama.core.errors import ConfigError
from lillama.distill.batch import BatchResult, BatchTotals, LossSettings, is_tied, learn_batch, span
from lillama.distill.learner import BlockLearner
from lillama.distill.parallel import Passage, Team, Update
from lillama.model.blocks import Blocks
from lillama.model.inputs import Batch
from lillama.model.student import Student


class Relay:
    """Teaches a part of a batch to this process's blocks.

    :param learners: this process's. :param wanted: its run of blocks. :param learning: all blocks that learn.
    :raises ConfigError: for more processes than blocks.
    """

    def __init__(
        self,
        blocks: Blocks,
        learners: Mapping[int, BlockLearner],
        loss_settings: LossSettings,
        *,
        wanted: Sequence[int],
        learning: Sequence[int],
        team: Team,
    ) -> None:
        if not wanted:
            raise ConfigError(f"parallel=blocks: {team.size} processes are more than there are blocks to run")
        self.blocks = blocks
        self.learners = learners
        self.loss_settings = loss_settings
        self.wanted = wanted
        parameter = next(blocks.model.parameters())
        self.passage = Passage(team, learning, parameter.device)
        self._save = False

    def begin(self, save: bool) -> None:
        """Begin a step; the process with the lowest blocks, ahead of all others, says what is saved after it."""
        self._save = save and self.passage.first

    def __call__(self, batch: Batch, whole: BatchTotals, update: Update | None) -> BatchResult:
        """Take what has flowed up to here, learn, pass it on."""
        boundary, below, save = self.passage.receive()
        self._save = self._save or save
        own = learn_batch(
            self.blocks,
            self.learners,
            batch,
            self.loss_settings,
            update=update,
            whole=whole,
            wanted=self.wanted,
            boundary=boundary,
        )
        losses: dict[int, Tensor] = below | own.losses
        self.passage.send(own.boundary, losses, save=self._save)
        return BatchResult(losses, own.boundary)

    def finish(self) -> bool:
        """End a step; whether a snapshot is made after it, by all processes alike."""
        return self._save


def check_shareable(student: Student, config: DistillConfig) -> None:
    """Raise a :class:`ConfigError` where a run's blocks cannot be shared out."""
    if len(student.teacher_blocks.stacks) > 1:
        raise ConfigError("parallel=blocks: an encoder-decoder has no single stream of activations; use data")
    if is_tied(student, config):
        raise ConfigError("parallel=blocks: a low-rank embedding is tied to the head; use data")


def exchange(team: Team, student: Student, config: DistillConfig, relay: "Relay") -> None:
    """Give every process the weights of all blocks, each from the one that learnt them, as the model computes."""
    relay.passage.finish()
    everyone = span(student.blocks)
    for rank in range(team.size):
        for index in Team(rank, team.size, team.mode).part_of_blocks(everyone, student.blocks):
            for parameter in student.trained_parameters(index, config.train) if index in student.blocks else ():
                value = parameter.data.to(student.dtype, copy=True)
                team.broadcast_tensors([value], source=rank)
                if rank != team.rank:
                    parameter.data.copy_(value)
