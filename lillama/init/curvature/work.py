"""Moments of one matrix on both sides, and what both ways of taking them share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lillama.algebra.moments import moment_bytes, within_limit
from lillama.config import OutputMoment
from lillama.core.errors import DivergedError
from lillama.data.calibration import Calibration
from lillama.init.labels import CalibrationLoss
from lillama.init.moments import InputCollector, InputMoment
from lillama.init.outputs import OutputCollector, OutputMoments
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.inputs import Batch, model_inputs
from lillama.model.lowrank import tied_head
from lillama.model.surgery import matrix

TOKENS = 1024  # products want as many rows at a time
FEWEST, MOST = 2, 4  # sequences at a time: the logits of long ones are large, and so are clips of few tokens


class Curvature(NamedTuple):
    """The moments of one matrix: of its inputs, and of the gradients at its outputs.

    ``head`` are those of the prediction head that is tied to an embedding.
    """

    inputs: InputMoment
    outputs: OutputMoments
    head: "Curvature | None" = None


@dataclass(slots=True)
class LossMean:
    """The mean loss per predicted token of the calibration tokens, in nats; filled in by the first pass over them."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """Return the mean; zero before anything was predicted."""
        return self.total / max(self.count, 1)


@dataclass(frozen=True, slots=True)
class CurvatureWork:
    """The model and the tokens of which moments are taken, and how."""

    blocks: Blocks
    data: Calibration
    output: OutputMoment
    loss: CalibrationLoss
    mean: LossMean
    limit: int
    progress: bool

    @property
    def device(self) -> torch.device:
        return next(self.blocks.model.parameters()).device

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Return every batch with its number."""
        length = max(self.data.tokens // len(self.data), 1)
        size = min(max(TOKENS // length, FEWEST), MOST)
        return enumerate(self.data.batches(size, self.device))

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Return the names in groups whose moments fit into the limit together."""
        return within_limit({name: self._bytes(name) for name in names}, self.limit)

    def _bytes(self, name: str) -> int:
        *experts, out_features, in_features = matrix(self.blocks.model, name).shape
        full = self.output is OutputMoment.full and self.blocks.index_of(name) not in (EMBEDDING, self.blocks.head)
        both = moment_bytes(in_features) + (moment_bytes(out_features) if full else 0)
        return both * (experts[0] if experts else 1)

    def backward(self, logits: Tensor, targets: Tensor, number: int, collectors: "Collectors") -> None:
        """Run a batch's loss backward; the collectors of a head are told of its predictions."""
        collectors.outputs.spread_head(lambda: self.loss.variance(logits.detach(), targets))
        loss = self.loss.summed(logits, targets, number)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"init=kfac: the loss of calibration batch {number} is {value}")
        self.mean.total += value
        self.mean.count += int((targets >= 0).sum())
        loss.backward()


class Collectors:
    """The moments of some matrices on both sides, while their hooks are registered."""

    def __init__(self, work: CurvatureWork) -> None:
        self.inputs = InputCollector(work.blocks)
        self.outputs = OutputCollector(self.inputs, work.output)
        self._model = work.blocks.model

    @contextmanager
    def of(self, names: Sequence[str]) -> Iterator[None]:
        """Collect the moments of these matrices within."""
        hooks = [*self.inputs.hooks(names), *self.outputs.hooks(names)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, batch: Batch) -> None:
        """Begin a batch: which of its positions count."""
        self.inputs.inputs = model_inputs(self._model, batch)
        self.inputs.latest = None

    def taken(self, name: str, head: Curvature | None = None) -> Curvature:
        """Hand over the moments of a matrix."""
        return Curvature(self.inputs.of(name), self.outputs.of(name), head)


def tied_heads(blocks: Blocks, names: Sequence[str]) -> dict[str, str]:
    """Name the heads that are tied to an embedding among the matrices, by the embedding."""
    found = {name: tied_head(blocks.model, name) for name in names if blocks.index_of(name) == EMBEDDING}
    return {name: head for name, head in found.items() if head is not None}


def require_gradient(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Let gradients reach what a module gives, which the model may go on to change in place; a forward hook."""
    return with_gradient(output)


def with_gradient(hidden: Tensor) -> Tensor:
    """Begin a graph at hidden states that are in none; what is given may be changed in place."""
    return hidden if hidden.requires_grad else hidden.detach().requires_grad_().clone()


def progress_bar(work: CurvatureWork, passes: int) -> tqdm:
    """Draw the progress of so many passes over the tokens."""
    return tqdm(total=passes * work.data.tokens, desc="curvature", unit="tok", disable=not work.progress)
