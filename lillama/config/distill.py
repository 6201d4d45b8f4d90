"""Configure the local updates and their schedules."""

import math
from dataclasses import dataclass, field

from lillama.config.choices import AdamPrecision, Keep, LearningRate, OutOfMemory, Place, Train
from lillama.config.hashed import left_out
from lillama.config.option import option
from lillama.core.errors import POSITIVE, ConfigError, require


@option("distill/schedule", "joint")
@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """In which order blocks learn; by itself, all at once from one stream of tokens (Section 4)."""


@option("distill/schedule", "blockwise")
@dataclass(kw_only=True, slots=True)
class BlockwiseConfig(ScheduleConfig):
    """A block to its end, then the next one, which sees what the compressed model then feeds it with.

    ``heldout`` is the share of the sequences that no block learns from; after every pass over the others their loss is
    taken, and a block stops once it has not fallen for ``patience`` passes (0: never) and keeps its best weights.
    """

    place: Place = left_out(Place.memory)
    heldout: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.heldout < 1, "distill.schedule.heldout", self.heldout, "a share, from 0 to below 1")
        patience = self.patience
        require(patience >= 0, "distill.schedule.patience", patience, "must not be negative")
        needed = patience == 0 or self.heldout > 0
        require(needed, "distill.schedule.patience", patience, "needs distill.schedule.heldout above 0")


@option("distill", "distill")
@dataclass(kw_only=True, slots=True)
class DistillConfig:
    """The local updates: one AdamW for each compressed block.

    ``batch_size`` sequences make one update; ``micro_batch`` of them are on the device at a time (null: all).
    ``merge`` feeds a block with the teacher's and the student's inputs in one call.
    """

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 8
    # How a step is fitted into the memory that there is; the same to rounding.
    micro_batch: int | None = left_out()
    on_oom: OutOfMemory = left_out(OutOfMemory.stop)
    merge: bool = left_out(True)
    compile: bool = left_out(False)
    epochs: int = 1
    lr: float = 8.6e-4
    lr_schedule: LearningRate = LearningRate.constant
    warmup: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    moments: AdamPrecision = AdamPrecision.float32
    clip_norm: float | None = None
    train: Train = Train.factors
    master_weights: bool = True
    dropout: bool = False
    mask_padding: bool = True
    keep: Keep = Keep.last

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "distill.batch_size", self.batch_size, POSITIVE)
        micro = self.micro_batch
        require(micro is None or micro > 0, "distill.micro_batch", micro, "must be a positive integer, or null for all")
        require(self.epochs > 0, "distill.epochs", self.epochs, POSITIVE)
        require(0 < self.lr < math.inf, "distill.lr", self.lr, "must be positive and finite")
        require(0 <= self.warmup < 1, "distill.warmup", self.warmup, "a fraction of the steps, from 0 to below 1")
        decay = self.weight_decay
        require(0 <= decay < math.inf, "distill.weight_decay", decay, "must be finite and not negative")
        clip = self.clip_norm
        require(
            clip is None or 0 < clip < math.inf, "distill.clip_norm", clip, "must be positive, or null for no clipping"
        )
        blockwise = isinstance(self.schedule, BlockwiseConfig)
        if blockwise and self.on_oom is OutOfMemory.halve:
            raise ConfigError("distill.on_oom=halve: the blockwise schedule keeps its parts; set distill.micro_batch")
        if blockwise and self.dropout:
            raise ConfigError("distill.dropout=true: a block's inputs are computed once; use distill/schedule=joint")
        held = isinstance(self.schedule, BlockwiseConfig) and self.schedule.heldout > 0
        kept = not held or self.keep is Keep.last
        require(kept, "distill.keep", self.keep.name, "the held-out loss says what is kept; use last")
        legal = "two numbers from 0 to below 1"
        right = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(right, "distill.betas", list(self.betas), legal)
