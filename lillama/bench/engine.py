"""The engine and its references as things to be timed: seconds for one batch through all blocks that learn."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lillama.bench.products import Product, Recorder, synchronize
from lillama.config import AdamPrecision, BlockwiseConfig, DistillConfig, LossConfig
from lillama.data.tokens import TokenBlocks
from lillama.distill import LoopContext, Progress, distill
from lillama.model.rows import layouts_of
from lillama.model.student import Student

BATCHES = 2  # of a round


class Engine:
    """``lillama.distill`` on random tokens.

    :param length: tokens a sequence. :param scratch: where the blockwise schedule may keep files.
    """

    def __init__(
        self, student: Student, config: DistillConfig, loss: LossConfig, *, length: int, scratch: Path | None = None
    ) -> None:
        self.student, self.loss, self.scratch = student, loss, scratch
        schedule = config.schedule
        self.blockwise = isinstance(schedule, BlockwiseConfig)
        if isinstance(schedule, BlockwiseConfig):
            schedule = replace(schedule, heldout=0.0, patience=0)
        self.config = replace(config, schedule=schedule, epochs=1)
        self.device = next(student.teacher.parameters()).device
        vocabulary = student.teacher.get_input_embeddings().num_embeddings  # type: ignore[operator]
        self.data = random_tokens(BATCHES * config.batch_size, length, vocabulary)

    @property
    def tokens(self) -> int:
        """Of one batch."""
        return self.data.tokens // BATCHES

    def record(self) -> list[Product]:
        """The matrix products of one batch. What is compiled would hide them: here no block is, and no optimizer."""
        plain = replace(self.config, compile=False, moments=AdamPrecision.float32)
        layouts_of(self.student.teacher_blocks, next(self.data.batches(1, self.device)))  # is found once, in any run
        with Recorder() as recorder:
            self._distill(self.data.head(self.tokens), plain, lambda progress: None)
        return recorder.products

    def seconds(self) -> float:
        """Seconds for one batch.

        Joint: the second of two steps, on the engine's own clock, data and updates included. Blockwise: half of the
        time that two batches take through all blocks, each block's set-up and its passing on included.
        """
        speeds: list[float] = []
        synchronize(self.device)
        began = time.perf_counter()
        self._distill(self.data, self.config, lambda progress: speeds.append(progress.tokens_per_second))
        synchronize(self.device)
        if self.blockwise:
            return (time.perf_counter() - began) / BATCHES
        return self.tokens / speeds[-1]

    def _distill(self, data: TokenBlocks, config: DistillConfig, on_step: Callable[[Progress], None]) -> None:
        distill(self.student, data, config, self.loss, LoopContext(on_step=on_step, scratch=self.scratch))


class Steps(Protocol):
    """The same method by other code."""

    def step(self, ids: torch.Tensor) -> object:
        """Make one step on token ids [b, t]."""


class Reference:
    """Another code of the method on the same batch as the engine."""

    def __init__(self, engine: Engine, method: Steps) -> None:
        self.device, self.method = engine.device, method
        self.ids = next(engine.data.batches(engine.config.batch_size, engine.device)).ids

    def seconds(self) -> float:
        """Seconds for one step."""
        synchronize(self.device)
        began = time.perf_counter()
        self.method.step(self.ids)
        synchronize(self.device)
        return time.perf_counter() - began


def random_tokens(sequences: int, length: int, vocabulary: int, seed: int = 0) -> TokenBlocks:
    """Random token ids [sequences, length], all of them real."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (sequences, length)).astype(np.int32)
    return TokenBlocks(ids, np.full(sequences, length, np.int32))


def gpu_name(device: torch.device) -> str | None:
    """Return the name of the GPU that a device is; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
