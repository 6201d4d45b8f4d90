"""Hold the progress of a distillation and what it is run with."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from lillama.core.errors import DivergedError
from lillama.core.preempt import Preemption
from lillama.distill.learner import BlockLearner
from lillama.distill.parallel import ALONE, Team
from lillama.distill.snapshot import Snapshot, Snapshots, on_host, random_state, set_random_state

ORDERS = "orders"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a distillation after a step (counted from 0): tokens seen, each block's loss, this step's speed."""

    step: int
    tokens: int
    losses: dict[int, float]
    lr: float
    tokens_per_second: float

    @property
    def loss(self) -> float:
        """Return the mean over the blocks."""
        return sum(self.losses.values()) / len(self.losses)


@dataclass(slots=True, kw_only=True)
class LoopContext:
    """Callbacks, snapshots, processes and preemption of a training loop; none of it changes the result.

    :param on_step: called after every step. :param measure: called at the marks of ``every_tokens``, after a snapshot.
    :param snapshots: where to save it; None: nowhere. :param start: the snapshot to go on from.
    :param note: what the caller wants to find again with a snapshot, as plain values.
    :param fixed: parts of every snapshot that stay as they are: what the model has that does not learn.
    :param scratch: a folder for what does not fit into memory.
    :param every_tokens: how many tokens lie between two calls of ``measure``; 0: it is not called.
    :param save_at_end: make a snapshot of the last step too: long work follows, and a run killed in it goes on there.
    """

    on_step: Callable[[Progress], None] = lambda progress: None
    measure: Callable[[int], None] = lambda tokens: None
    progress: bool = False
    team: Team = ALONE
    preemption: Preemption = field(default_factory=Preemption)
    snapshots: Snapshots | None = None
    start: Snapshot | None = None
    note: Callable[[], Mapping[str, Any]] = dict
    fixed: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None
    every_tokens: int = 0
    save_at_end: bool = False

    def under_way(self) -> AbstractContextManager[None]:
        """While a step is computed, a request to end is put off where a snapshot can be made after it."""
        return nullcontext() if self.snapshots is None else self.preemption.later()

    def at_mark(self, before: int, tokens: int) -> bool:
        """Tell whether a mark lies between two counts of tokens."""
        return self.every_tokens > 0 and tokens // self.every_tokens > before // self.every_tokens

    def save_wanted(self, step: int, *, last: bool) -> bool:
        """Tell whether a snapshot is due after this many steps, in this process's view; ``last``: no step follows."""
        if self.snapshots is None:
            return False
        return self.preemption.signal is not None or self.snapshots.due(step) or (last and self.save_at_end)

    def asked_to_end(self) -> bool:
        """Tell whether any process was asked to end (collective: every process must call it)."""
        return self.snapshots is not None and self.team.any_rank(self.preemption.signal is not None)

    def point(self, tokens: int) -> None:
        """Measure a point; what led to it is saved, so a request to end is followed at once."""
        with self.preemption.at_once():
            self.measure(tokens)

    def save(self, step: int, position: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        """Make a snapshot of every process's parts, and end the run if it was asked to.

        :raises DivergedError: where a weight is not finite: no snapshot is made of that.
        """
        if self.snapshots is None:
            return
        check_finite(parts)
        if self.team.shares_blocks:
            parts = {name: part for own in self.team.gather(on_host(parts)) for name, part in own.items()}
        if self.team.main:
            self.snapshots.save(step, position, dict(self.note()), {**self.fixed, **parts, "random": random_state()})
        self.snapshots.made()
        if self.asked_to_end():
            self.end()

    def end(self) -> None:
        """End the run: every process must."""
        if self.snapshots is not None:
            self.snapshots.close()
        self.team.barrier()  # whoever ends first takes the others along
        self.preemption.end()

    def restore(self, learners: Mapping[int, BlockLearner]) -> dict[str, Any] | None:
        """Put learners where the snapshot to go on from left them; its position, or None where there is none."""
        if self.start is None:
            return None
        for index, learner in learners.items():
            learner.load_state(self.start.part(part_name(index)))
        set_random_state(self.start.part("random"))
        return self.start.position


def as_parts(orders: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the part of a snapshot that holds the orders of columns of pivoted factors; none for plain ones."""
    return {ORDERS: dict(orders)} if orders else {}


def part_name(index: int) -> str:
    """Return the name of a block's part of a snapshot; the input embedding's number is -1."""
    return f"block_{index:03d}" if index >= 0 else "embedding"


def check_finite(parts: Mapping[str, Any]) -> None:
    """Raise a :class:`DivergedError` naming the first part with a value that is not finite."""
    for name, part in parts.items():
        tensors: Iterator[Any] = (value for value in tree_iter(part) if isinstance(value, torch.Tensor))
        if not all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() and type(t) is torch.Tensor):
            raise DivergedError(f"{name.replace('_', ' ')}: holds values that are not finite")


class Stopwatch:
    """Tokens a second, of each step on its own."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self, tokens: int) -> float:
        """Return the speed since the last lap."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return tokens / seconds
