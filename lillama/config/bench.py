"""Configure what the engine's cost is measured by."""

import math
from dataclasses import dataclass

from lillama.config.option import option
from lillama.core.errors import POSITIVE, require


@option("bench", "bench")
@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """Measurements of the stage ``bench``, of a distillation with this configuration; its batch is ``distill``'s.

    ``rounds`` are counted after ``warmup`` others, as far as ``seconds`` reach (the first is always made). ``blocks``
    is how many of the plan's blocks learn, lowest first (null: all). ``authors`` measures the method as the paper's
    authors run it beside the engine, ``literal`` the method written down literally, which needs the whole model;
    without it a random model ends with its last block that learns. ``project_tokens`` is the budget whose time is
    projected.
    """

    rounds: int = 5
    warmup: int = 1
    seconds: float = 600.0
    blocks: int | None = None
    authors: bool = True
    literal: bool = True
    project_tokens: int = 13_000_000

    def __post_init__(self) -> None:
        require(self.rounds > 0, "bench.rounds", self.rounds, POSITIVE)
        require(self.warmup >= 0, "bench.warmup", self.warmup, "must not be negative")
        require(0 < self.seconds < math.inf, "bench.seconds", self.seconds, "must be positive and finite")
        blocks = self.blocks
        require(blocks is None or blocks > 0, "bench.blocks", blocks, "must be a positive integer, or null for all")
        require(self.project_tokens > 0, "bench.project_tokens", self.project_tokens, POSITIVE)
