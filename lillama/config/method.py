"""Configure what is compressed and how: the model, the strategy, the start, the loss."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from lillama.config.choices import (
    Distance,
    Dtype,
    FactorForm,
    Reduction,
    Rounding,
    Scope,
    StudentInputs,
    Task,
    Weighting,
    Weights,
)
from lillama.core.errors import POSITIVE, require


@dataclass(kw_only=True, slots=True)
class TargetsConfig:
    """Matrices that may be replaced, by shell patterns: a module's name, or what comes after one of its dots.

    ``include`` null is every linear and fused expert of the blocks but routers; the input embedding and the prediction
    head, or a router, are replaced where a pattern names them. What ``exclude`` matches stays dense.
    """

    include: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The teacher: a Hub id, a local folder, a GGUF file, or ``package://<package>/<file>`` in a Python package.

    With ``offload`` the blocks stay in host memory, mapped from their files, and each is on the device, in the dtype of
    the run, only while it is needed. ``KEY`` is the setting that errors name.
    """

    KEY: ClassVar[str] = "model.path"

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    task: Task = Task.auto
    weights: Weights = Weights.pretrained
    architecture: dict[str, Any] = field(default_factory=dict)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    dtype: Dtype = Dtype.auto
    device: str = "auto"
    offload: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(
            self.path is not None or bool(self.architecture),
            "model.path",
            self.path,
            "give a Hub id, a local folder or a GGUF file, or an architecture with model.weights=random",
        )
        require(
            self.weights is Weights.random or self.path is not None,
            "model.weights",
            self.weights.name,
            "pretrained weights need model.path; the other choice is random",
        )
        known = self.device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d{1,3}", self.device) is not None
        require(known, "model.device", self.device, "must be auto, cpu, cuda or cuda:N")


@dataclass(kw_only=True, slots=True)
class BaselineConfig(ModelConfig):
    """The dense model that is measured beside a finished checkpoint."""

    KEY: ClassVar[str] = "evaluate.baseline"


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """Size of the compressed model: a reduction, or a parameter count (which wins where both are given).

    ``from_spectra`` says whether a strategy looks at weights and calibration tokens, not at shapes alone.
    """

    from_spectra: ClassVar[bool] = False
    reduction: float = 0.2
    parameters: str | None = None
    scope: Scope = Scope.all

    def __post_init__(self) -> None:
        require(0 < self.reduction < 1, "strategy.reduction", self.reduction, "must lie between 0 and 1, exclusive")


@dataclass(kw_only=True, slots=True)
class BottomConfig(StrategyConfig):
    """Algorithm 1: the lowest layers first, with candidate ranks k, k + m, k + 2m, ..."""

    k: int = 1024
    m: int = 256

    def __post_init__(self) -> None:
        # Not super(): slots=True makes a new class, and the zero-argument form still holds the old one.
        StrategyConfig.__post_init__(self)
        require(self.k > 0, "strategy.k", self.k, POSITIVE)
        require(self.m > 0, "strategy.m", self.m, POSITIVE)


@dataclass(kw_only=True, slots=True)
class TopConfig(BottomConfig):
    """Algorithm 1 with the layers in reverse."""


@dataclass(kw_only=True, slots=True)
class MiddleOutConfig(BottomConfig):
    """Algorithm 1 from the middle layer outward."""


@dataclass(kw_only=True, slots=True)
class MixedConfig(BottomConfig):
    """Algorithm 1 from both ends in turn."""


@dataclass(kw_only=True, slots=True)
class RoundedRanksConfig(StrategyConfig):
    """Ranks of which none is below ``k``, in multiples of ``round_to``."""

    k: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        StrategyConfig.__post_init__(self)
        require(self.k > 0, "strategy.k", self.k, POSITIVE)
        require(self.round_to > 0, "strategy.round_to", self.round_to, POSITIVE)


@dataclass(kw_only=True, slots=True)
class UniformConfig(RoundedRanksConfig):
    """The same fraction of every matrix; no rank is below ``k``, and ranks are multiples of ``round_to``."""

    fraction_of: Rounding = Rounding.parameters


@dataclass(kw_only=True, slots=True)
class SpectraRanksConfig(RoundedRanksConfig):
    """Ranks chosen by the spectra of matrices; none is below ``k``, and they are multiples of ``round_to``."""

    from_spectra: ClassVar[bool] = True


@dataclass(kw_only=True, slots=True)
class SpectrumConfig(SpectraRanksConfig):
    """Ranks that lose the least output energy; none is below ``k``, and they are multiples of ``round_to``.

    ``tokens`` and ``floor`` are those of ``init=feature``: where they are the same, the two share their spectra.
    """

    weighting: Weighting = Weighting.relative
    tokens: int = 16384
    floor: float = 1e-7

    def __post_init__(self) -> None:
        SpectraRanksConfig.__post_init__(self)
        require(self.tokens > 0, "strategy.tokens", self.tokens, POSITIVE)
        require(0 < self.floor < 1, "strategy.floor", self.floor, "must lie between 0 and 1, exclusive")


@dataclass(kw_only=True, slots=True)
class KfacRanksConfig(SpectraRanksConfig):
    """Ranks that raise the loss least as a whole, predicted in nats from the moments of ``init=kfac``.

    No rank is below ``k``, and they are multiples of ``round_to``; what is worth its whole size stays dense. Where the
    start is another one, the moments are those of ``init=kfac`` with its defaults. With ``tied_embedding`` the table
    that a model both embeds and predicts with is pooled too, where ``model.targets`` says nothing else.
    """

    tied_embedding: bool = True


@dataclass(kw_only=True, slots=True)
class MeasuredRanksConfig(SpectraRanksConfig):
    """Ranks by what cutting each matrix alone costs.

    It is cut to ``probe`` of its largest saving rank, the KL to the dense logits is measured on ``sequences``
    calibration sequences, and the spectrum of its outputs (``init=feature``, on ``tokens`` tokens) is scaled to it.
    """

    probe: float = 0.1
    sequences: int = 32
    tokens: int = 16384
    floor: float = 1e-7

    def __post_init__(self) -> None:
        SpectraRanksConfig.__post_init__(self)
        require(0 < self.probe < 1, "strategy.probe", self.probe, "a share, between 0 and 1, exclusive")
        require(self.sequences > 0, "strategy.sequences", self.sequences, POSITIVE)
        require(self.tokens > 0, "strategy.tokens", self.tokens, POSITIVE)
        require(0 < self.floor < 1, "strategy.floor", self.floor, "must lie between 0 and 1, exclusive")


@dataclass(kw_only=True, slots=True)
class RankConfig(StrategyConfig):
    """The same rank for every matrix that it makes smaller; the reduction is what that comes to."""

    rank: int = 1024

    def __post_init__(self) -> None:
        StrategyConfig.__post_init__(self)
        require(self.rank > 0, "strategy.rank", self.rank, POSITIVE)


@dataclass(kw_only=True, slots=True)
class PlanFileConfig(StrategyConfig):
    """Replays the ranks of a saved ``plan.json``."""

    file: str = MISSING


@dataclass(kw_only=True, slots=True)
class FactorsConfig:
    """Storage of factors: the same function in fewer numbers where they are pivoted."""

    form: FactorForm = FactorForm.plain


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Inputs of a student block and the comparison of its output."""

    inputs: StudentInputs = MISSING
    distance: Distance = Distance.l1_cosine
    reduction: Reduction = Reduction.mean
