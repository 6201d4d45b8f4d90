"""Several processes on one run, as torchrun starts them: a batch shared out, or the model's blocks.

Shared batches (``parallel=data``): every process has all learners; gradients are summed, each block's while the next
one learns. Shared blocks (``parallel=blocks``): no gradient crosses a block, so activations only ever flow upward, and
nothing comes back. The last process holds the lowest blocks and the first, which keeps the records, the highest: what
is to be told flows to it with the activations. Processes meet at snapshots and where the whole student is measured.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lillama.config import Parallel
from lillama.core.errors import ConfigError, TeamError
from lillama.distill.learner import BlockLearner
from lillama.distill.student_stream import BoundaryActivations
from lillama.model.calls import hidden_states
from lillama.model.inputs import Batch

log = logging.getLogger(__name__)
Update = Callable[[BlockLearner, Tensor], None]
PATIENCE = timedelta(hours=6)  # the others wait while the first one factorises and measures
UNDER_WAY = 2  # messages of one process that the next one has not taken yet
# The numbers before a message: place, the student's own?, length of the result, a snapshot next?, dtype, b, t, d.
HEADER = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # some families pass on wider states than they compute in


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those of a run."""

    rank: int = 0
    size: int = 1
    mode: Parallel | None = None

    @property
    def main(self) -> bool:
        """Tell whether this process keeps the records."""
        return self.rank == 0

    @property
    def shares_blocks(self) -> bool:
        """Tell whether each process has its own blocks."""
        return self.mode is Parallel.blocks

    def part_of(self, batch: Batch) -> Batch:
        """This process's part of a batch; it may be empty."""
        if self.mode is not Parallel.data:
            return batch
        cuts = [len(batch) * place // self.size for place in range(self.size + 1)]
        return batch.rows(cuts[self.rank], cuts[self.rank + 1])

    def part_of_blocks(self, wanted: Sequence[int], heavy: Iterable[int]) -> Sequence[int]:
        """This process's run of blocks; ``heavy`` ones, which learn, count twice."""
        if not self.shares_blocks:
            return wanted
        learning = set(heavy)
        weights = [2 if index in learning else 1 for index in wanted]
        place = self.size - 1 - self.rank
        cuts = [_cut(weights, part, self.size) for part in range(self.size + 1)]
        return wanted[cuts[place] : cuts[place + 1]]

    def any_rank(self, flag: bool) -> bool:
        """Take the logical OR over all processes (collective: every process must call it)."""
        if self.size == 1:
            return flag
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found.item())

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes of shared batches."""
        if self.mode is Parallel.data:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all the others."""
        if self.size > 1:
            dist.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """Broadcast the main process's object."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def broadcast_tensors(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Give every process one process's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=source)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, for the main one; for the others, nothing."""
        if self.size == 1:
            return [value]
        found = [None] * self.size if self.main else None
        dist.gather_object(value, found, dst=0)
        return found or []


ALONE = Team()


@contextmanager
def team_of(mode: Parallel, device: torch.device) -> Iterator[Team]:
    """The processes that torchrun started; one alone where it started none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What is said lies in host memory, whatever the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Team(dist.get_rank(), size, mode)
    dist.destroy_process_group()  # not after an error: it may wait for processes that wait for this one


@contextmanager
def explained(team: Team) -> Iterator[None]:
    """Raise a :class:`TeamError` where an error within means that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if "closed by peer" in str(error) or "Connection reset" in str(error) or isinstance(error, dist.DistError):
            message = f"process {team.rank} of {team.size}: another process of the run is gone; it may have said why"
            raise TeamError(message) from error
        raise


class SummedGradients:
    """Updates with the gradients of all processes: a block's are on their way while the next block learns."""

    def __init__(self, team: Team, update: Update) -> None:
        self.team = team
        self.update = update
        self._sent: tuple[BlockLearner, Tensor, Any] | None = None

    def __call__(self, learner: BlockLearner, loss: Tensor) -> None:
        """Send a block's gradients off, and make the update of the block before it."""
        if self.team.mode is not Parallel.data:
            self.update(learner, loss)
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters]
        flat = torch.cat([*(gradient.float().flatten() for gradient in gradients), loss.float().reshape(1)])
        work = dist.all_reduce(flat, async_op=True)
        self.finish()
        self._sent = (learner, flat, work)

    def finish(self) -> None:
        """Make the update that is still on its way."""
        if self._sent is None:
            return
        (learner, flat, work), self._sent = self._sent, None
        work.wait()
        *pieces, loss = flat.split([*(p.numel() for p in learner.parameters), 1])
        for parameter, piece in zip(learner.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
        self.update(learner, loss[0])


class Passage:
    """Receives activations from the process below and sends them to the one above (``parallel=blocks``).

    :param blocks: of the whole run, in the order in which a message names their losses.
    """

    def __init__(self, team: Team, blocks: Sequence[int], device: torch.device) -> None:
        self.team = team
        self.blocks = list(blocks)
        self.device = device
        self._under_way: list[tuple[list[Any], list[Tensor]]] = []

    @property
    def first(self) -> bool:
        """Tell whether this process has the lowest blocks."""
        return self.team.rank == self.team.size - 1

    def receive(self) -> tuple[BoundaryActivations | None, dict[int, Tensor], bool]:
        """Receive the hidden states and losses from below, and whether a snapshot follows this step."""
        if self.first:
            return None, {}, False
        header = self._take((HEADER,), torch.long).tolist()
        place, own, length, save, code, *shape = header
        losses = self._take((len(self.blocks),), torch.float32)
        hidden = self._take(shape, DTYPES[code])
        result = (hidden, *[None] * (length - 1)) if length else hidden
        student = {place: self._take(shape, DTYPES[code])} if own else {}
        known = {index: losses[n] for n, index in enumerate(self.blocks) if not torch.isneginf(losses[n])}
        return BoundaryActivations({place: result}, student), known, bool(save)

    def send(self, boundary: BoundaryActivations, losses: Mapping[int, Tensor], *, save: bool = False) -> None:
        """Pass on what has flowed through this process's blocks."""
        if self.team.main:
            return
        ((place, result),) = boundary.teacher.items()
        if isinstance(result, tuple) and any(isinstance(value, Tensor) for value in result[1:]):
            raise ConfigError("parallel=blocks: the model's blocks pass on more than hidden states; use parallel=data")
        hidden, own = hidden_states(result), boundary.student.get(place)
        length = len(result) if isinstance(result, tuple) else 0
        code = DTYPES.index(hidden.dtype)
        header = torch.tensor([place, own is not None, length, save, code, *hidden.shape], device=self.device)
        missing = torch.tensor(float("-inf"), device=self.device)
        values = torch.stack([losses.get(index, missing).float() for index in self.blocks])
        tensors = [header, values, hidden.contiguous(), *([] if own is None else [own.contiguous()])]
        works = [dist.isend(tensor, dst=self.team.rank - 1) for tensor in tensors]
        self._under_way.append((works, tensors))
        while len(self._under_way) > UNDER_WAY:
            self._landed()

    def finish(self) -> None:
        """Wait until everything that was sent has been taken."""
        while self._under_way:
            self._landed()

    def _landed(self) -> None:
        works, _ = self._under_way.pop(0)
        for work in works:
            work.wait()

    def _take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        dist.recv(tensor, src=self.team.rank + 1)
        return tensor


def _cut(weights: Sequence[int], part: int, parts: int) -> int:
    """Find where the first ``part`` of ``parts`` shares ends; every share has at least one."""
    if part == parts:
        return len(weights)
    ends = [sum(weights[: n + 1]) for n in range(len(weights))]
    wished = sum(end * parts <= ends[-1] * part for end in ends)
    return min(max(wished, part), len(weights) - parts + part)
