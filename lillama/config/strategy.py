"""Configure how ranks are picked."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Rounding, Scope, Weighting
from lillama.config.option import option
from lillama.core.errors import POSITIVE, require


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


@option("strategy", "bottom", by="lillama.strategy.bottom:plan_bottom")
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


@option("strategy", "top", by="lillama.strategy.top:plan_top")
@dataclass(kw_only=True, slots=True)
class TopConfig(BottomConfig):
    """Algorithm 1 with the layers in reverse."""


@option("strategy", "middle_out", by="lillama.strategy.middle_out:plan_middle_out")
@dataclass(kw_only=True, slots=True)
class MiddleOutConfig(BottomConfig):
    """Algorithm 1 from the middle layer outward."""


@option("strategy", "mixed", by="lillama.strategy.mixed:plan_mixed")
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


@option("strategy", "uniform", by="lillama.strategy.uniform:plan_uniform")
@dataclass(kw_only=True, slots=True)
class UniformConfig(RoundedRanksConfig):
    """The same fraction of every matrix; no rank is below ``k``, and ranks are multiples of ``round_to``."""

    fraction_of: Rounding = Rounding.parameters


@dataclass(kw_only=True, slots=True)
class SpectraRanksConfig(RoundedRanksConfig):
    """Ranks chosen by the spectra of matrices; none is below ``k``, and they are multiples of ``round_to``."""

    from_spectra: ClassVar[bool] = True


@option("strategy", "spectrum", by="lillama.strategy.spectrum:plan_spectrum")
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


@option("strategy", "kfac", by="lillama.strategy.kfac:plan_kfac")
@dataclass(kw_only=True, slots=True)
class KfacRanksConfig(SpectraRanksConfig):
    """Ranks that raise the loss least as a whole, predicted in nats from the moments of ``init=kfac``.

    No rank is below ``k``, and they are multiples of ``round_to``; what is worth its whole size stays dense. Where the
    start is another one, the moments are those of ``init=kfac`` with its defaults. With ``tied_embedding`` the table
    that a model both embeds and predicts with is pooled too, where ``model.targets`` says nothing else.
    """

    tied_embedding: bool = True


@option("strategy", "measured", by="lillama.strategy.measured:plan_measured")
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


@option("strategy", "rank", by="lillama.strategy.rank:plan_rank")
@dataclass(kw_only=True, slots=True)
class RankConfig(StrategyConfig):
    """The same rank for every matrix that it makes smaller; the reduction is what that comes to."""

    rank: int = 1024

    def __post_init__(self) -> None:
        StrategyConfig.__post_init__(self)
        require(self.rank > 0, "strategy.rank", self.rank, POSITIVE)


@option("strategy", "plan", by="lillama.strategy.plan:plan_file")
@dataclass(kw_only=True, slots=True)
class PlanFileConfig(StrategyConfig):
    """Replays the ranks of a saved ``plan.json``."""

    file: str = MISSING
