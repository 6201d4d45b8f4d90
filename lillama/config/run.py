"""One run, whole: the groups together, where its metrics go, how often it is saved."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from lillama.config.bench import BenchConfig
from lillama.config.choices import (
    MADE_BY_DEFAULT,
    MEASURES,
    PLANNED,
    OutOfMemory,
    Parallel,
    Source,
    Stage,
    Tune,
    Weights,
)
from lillama.config.data import DataConfig
from lillama.config.distill import BlockwiseConfig, DistillConfig
from lillama.config.evaluate import EvaluateConfig
from lillama.config.factors import FactorsConfig
from lillama.config.finetune import FinetuneConfig
from lillama.config.hashed import left_out
from lillama.config.init import FeatureConfig, InitConfig, KfacConfig
from lillama.config.limits import check_values
from lillama.config.logger import LoggerConfig
from lillama.config.loss import LossConfig
from lillama.config.model import BaselineConfig, ModelConfig
from lillama.config.option import option
from lillama.config.strategy import StrategyConfig
from lillama.core.errors import POSITIVE, ConfigError, require


@dataclass(kw_only=True, slots=True)
class SnapshotConfig:
    """Snapshots of a distillation or a fine-tuning, so that the same command goes on with it.

    Null: not by this measure. ``keep`` is how many snapshots stay: a damaged one falls back to the one before.
    """

    every_minutes: float | None = 5.0
    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        minutes, steps = self.every_minutes, self.every_steps
        legal = "must be positive, or null"
        require(minutes is None or 0 < minutes < math.inf, "snapshot.every_minutes", minutes, legal)
        require(steps is None or steps > 0, "snapshot.every_steps", steps, legal)
        require(self.keep > 0, "snapshot.keep", self.keep, POSITIVE)

    @property
    def off(self) -> bool:
        """Tell whether none are made."""
        return self.every_minutes is None and self.every_steps is None


@dataclass(kw_only=True, slots=True)
class RanksConfig:
    """Defaults of ``strategy.k`` and ``strategy.m`` of Algorithm 1; a scale sets them, ``of`` by the model's name."""

    k: int = 1024
    m: int = 256
    of: dict[str, int] = field(default_factory=dict)


@option(None, "run")
@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run, whole."""

    name: str = left_out("run")
    scale: str | None = left_out()
    ranks: RanksConfig = left_out(factory=RanksConfig)
    stages: list[Stage] = field(default_factory=lambda: list(MADE_BY_DEFAULT))
    seed: int = 0
    cache_dir: str = left_out(MISSING)
    cache_limit_gb: float = left_out(20.0)
    progress: bool = left_out(True)
    save_checkpoint: bool = left_out(True)
    reuse: bool = left_out(False)
    model: ModelConfig = MISSING
    strategy: StrategyConfig = MISSING
    factors: FactorsConfig = field(default_factory=FactorsConfig)
    loss: LossConfig = MISSING
    init: InitConfig = MISSING
    data: DataConfig = MISSING
    distill: DistillConfig = MISSING
    finetune: FinetuneConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    logger: LoggerConfig = left_out(MISSING)
    bench: BenchConfig = field(default_factory=BenchConfig)
    # The same to rounding, however often saved and however many processes.
    snapshot: SnapshotConfig = left_out(factory=SnapshotConfig)
    parallel: Parallel = left_out(Parallel.data)

    def __post_init__(self) -> None:
        limit = self.cache_limit_gb
        require(0 < limit <= 1e9, "cache_limit_gb", limit, "must be positive and at most 1e9 (gigabytes)")
        require(bool(self.name.strip()), "name", repr(self.name), "must not be empty")
        # What an interpolation gives is a list of words still: OmegaConf converts only what stands in the YAML itself.
        names = [stage.name if isinstance(stage, Stage) else str(stage) for stage in self.stages]
        for name in names:
            require(name in Stage.__members__, "stages", names, f"{name} is none of {', '.join(Stage.__members__)}")
        self.stages = [Stage[name] for name in names]
        if self.finetune.train is Tune.none:
            self.stages = [stage for stage in self.stages if stage is not Stage.finetune]
        require(bool(self.stages), "stages", [], f"give at least one of {[stage.name for stage in Stage]}")
        if Stage.distill in self.stages and Stage.init not in self.stages:
            raise ConfigError(f"stages={[s.name for s in self.stages]}: distill needs init before it")
        if self._learns_for_nothing:
            said = f"stages={[s.name for s in self.stages]} fine-tune a model that is not measured"
            raise ConfigError(f"save_checkpoint=false: {said}; save it, or add perplexity")
        check_values(self)
        if Stage.wer in self.stages:
            self.evaluate.wer.check("evaluate.wer")
        if self.reuse and self.snapshot.off:
            raise ConfigError("reuse=true: what is kept is a snapshot; set snapshot.every_minutes or .every_steps")
        if self.parallel is Parallel.blocks and isinstance(self.distill.schedule, BlockwiseConfig):
            raise ConfigError("parallel=blocks: a blockwise schedule has one block at work; use parallel=data")
        if self.parallel is Parallel.blocks and self.distill.on_oom is OutOfMemory.halve:
            raise ConfigError("distill.on_oom=halve: processes that share blocks share parts; set distill.micro_batch")

    @property
    def _learns_for_nothing(self) -> bool:
        """Tell whether a fine-tuned model is neither saved nor measured; a distillation may be run for its cost."""
        measured = {Stage.perplexity, *MEASURES} & set(self.stages)
        return Stage.finetune in self.stages and not self.save_checkpoint and not measured

    @property
    def calibrates(self) -> bool:
        """Tell whether a stage looks at calibration tokens."""
        stages = set(self.stages)
        plans = bool(stages & set(PLANNED)) and self.strategy.from_spectra
        starts = Stage.init in stages and isinstance(self.init, FeatureConfig | KfacConfig)
        return plans or starts or Stage.distill in stages

    @property
    def finetune_data(self) -> DataConfig:
        """Return the text of the fine-tuning: its own, or what the run calibrates on."""
        own = self.finetune.data
        if own.source is not Source.calibration:
            return own
        return replace(self.data, tokens=own.tokens, seq_len=own.seq_len, seed=own.seed)

    @property
    def baseline(self) -> ModelConfig | None:
        """The dense model that is measured beside a finished checkpoint, on the same device and in the same dtype."""
        path = self.evaluate.baseline
        if path is None:
            return None
        known = {part.name: getattr(self.model, part.name) for part in fields(self.model)}
        own: dict[str, Any] = {
            "path": path,
            "revision": None,
            "tokenizer": None,
            "weights": Weights.pretrained,
            "architecture": {},
        }
        return BaselineConfig(**known | own)
