"""Fine-tuning: the whole model, from the loss of its predictions or from the dense model's logits."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import LearningRate, Objective, Scope, Source, Tune
from lillama.config.data import DataConfig, GeneratedDataConfig, MixedDataConfig
from lillama.config.hashed import left_out
from lillama.config.option import option
from lillama.core.errors import POSITIVE, require


@option("finetune/data", "finetune_data")
@dataclass(kw_only=True, slots=True)
class FinetuneDataConfig(DataConfig):
    """Text of a fine-tuning, apart from calibration; by default the whole text."""

    KEY: ClassVar[str] = "finetune.data"

    tokens: int | None = None


@option("finetune/data", "finetune_mixed")
@dataclass(kw_only=True, slots=True)
class FinetuneMixedConfig(MixedDataConfig):
    """Several texts to be fine-tuned on."""

    KEY: ClassVar[str] = "finetune.data"


@option("finetune/data", "finetune_generated")
@dataclass(kw_only=True, slots=True)
class FinetuneGeneratedConfig(GeneratedDataConfig):
    """Text of the dense model's own to be fine-tuned on."""

    KEY: ClassVar[str] = "finetune.data"


@option("finetune/data", "finetune_calibration")
@dataclass(kw_only=True, slots=True)
class FinetuneCalibrationConfig(FinetuneDataConfig):
    """The text that the run calibrates on, read as there, up to ``tokens`` of it in blocks of ``seq_len``.

    With the same seed its first tokens are those of the calibration.
    """

    MAKES: ClassVar[Source | None] = Source.calibration


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): an update of ``rank``, times ``alpha / rank``."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.rank > 0, "finetune.lora.rank", self.rank, POSITIVE)
        require(0 < self.alpha < math.inf, "finetune.lora.alpha", self.alpha, "must be positive and finite")
        require(0 <= self.dropout < 1, "finetune.lora.dropout", self.dropout, "a share, from 0 to below 1")


@option("finetune", "finetune")
@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """AdamW on the mean cross-entropy of the predicted tokens, or on the mean divergence from the dense model's logits.

    ``objective=kl`` is KL(dense || this model) of the next token's distributions at ``temperature``, times its square,
    plus ``hidden_weight`` times the normalised squared error of the blocks' outputs. The dense model is that of the run
    itself, or ``evaluate.baseline``.

    ``batch_size`` sequences make one update; ``micro_batch`` of them are on the device at a time (null: all), with the
    same gradients. ``activation_checkpointing`` computes activations again instead of keeping them. ``scope`` is the
    side of an encoder-decoder that learns; the other one is frozen (Appendix A.8). With ``embedding=false`` the input
    embedding stays as it is, and a head that is tied to it: of ``train=all``, and of ``factors`` where it has some.
    """

    data: DataConfig = MISSING
    objective: Objective = Objective.lm
    temperature: float = 1.0
    hidden_weight: float = 0.0
    train: Tune = Tune.all
    embedding: bool = True
    scope: Scope = Scope.all
    lora: LoraConfig = field(default_factory=LoraConfig)
    epochs: int = 1
    batch_size: int = 8
    micro_batch: int | None = left_out()
    activation_checkpointing: bool = left_out(False)
    lr: float = 2e-5
    lr_schedule: LearningRate = LearningRate.cosine
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        require(self.epochs > 0, "finetune.epochs", self.epochs, POSITIVE)
        require(self.batch_size > 0, "finetune.batch_size", self.batch_size, POSITIVE)
        micro, legal = self.micro_batch, "must be a positive integer, or null for all"
        require(micro is None or micro > 0, "finetune.micro_batch", micro, legal)
        require(0 <= self.lr < math.inf, "finetune.lr", self.lr, "must be finite and not negative")
        require(0 <= self.warmup < 1, "finetune.warmup", self.warmup, "a fraction of the steps, from 0 to below 1")
        decay = self.weight_decay
        require(0 <= decay < math.inf, "finetune.weight_decay", decay, "must be finite and not negative")
        legal = "two numbers from 0 to below 1"
        right = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(right, "finetune.betas", list(self.betas), legal)
        self._check_objective()
        clip, legal = self.clip_norm, "must be positive, or null for no clipping"
        require(clip is None or 0 < clip < math.inf, "finetune.clip_norm", clip, legal)

    def _check_objective(self) -> None:
        heat, weight = self.temperature, self.hidden_weight
        require(0 < heat < math.inf, "finetune.temperature", heat, "must be positive and finite")
        require(0 <= weight < math.inf, "finetune.hidden_weight", weight, "must be finite and not negative")
        legal = "compares with a dense model, so it needs finetune.objective=kl"
        alone = self.objective is Objective.lm
        require(not alone or heat == 1, "finetune.temperature", heat, legal)
        require(not alone or weight == 0, "finetune.hidden_weight", weight, legal)
