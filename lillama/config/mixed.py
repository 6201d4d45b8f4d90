"""Configure calibration text that is made: of several texts with shares, or by the dense model itself."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Join, Opening, Order, Packing, Source, SystemTurns, Template
from lillama.config.option import option
from lillama.config.text import DataConfig, TextConfig
from lillama.core.errors import POSITIVE, ConfigError, require

ROUNDING = 1e-3  # how far from 1 the shares may add up to: thirds are written as 0.333


@dataclass(kw_only=True, slots=True)
class WriteConfig:
    """Sampling of texts at ``temperature`` from a model's whole distribution, ``batch_size`` texts at a time."""

    temperature: float = 1.0
    opening: Opening = Opening.bos
    batch_size: int = 16

    def check(self, key: str) -> None:
        """Raise where a value is out of range."""
        heat = self.temperature
        require(0 < heat < math.inf, f"{key}.temperature", heat, "must be positive and finite")
        require(self.batch_size > 0, f"{key}.batch_size", self.batch_size, POSITIVE)


@option("data", "generated_data")
@dataclass(kw_only=True, slots=True)
class GeneratedDataConfig(DataConfig):
    """Text that the dense model writes itself, in blocks of ``seq_len``; how rows are read does not matter."""

    MAKES: ClassVar[Source | None] = Source.generated

    source: Source = Source.generated
    write: WriteConfig = field(default_factory=WriteConfig)

    def __post_init__(self) -> None:
        # Not super(): slots=True makes a new class, and the zero-argument form still holds the old one.
        DataConfig.__post_init__(self)
        require(self.tokens is not None, f"{self.KEY}.tokens", None, "a model could write for ever; give a number")
        self.write.check(f"{self.KEY}.write")


@dataclass(kw_only=True, slots=True)
class PartConfig(TextConfig):
    """One text of a mix: its share of the tokens, and where it comes from. Null: as the whole mix has it."""

    share: float = MISSING
    packing: Packing | None = None
    order: Order | None = None
    template: Template | None = None
    system: SystemTurns | None = None
    join: Join | None = None
    seed: int | None = None
    write: WriteConfig = field(default_factory=WriteConfig)


@option("data", "mixed_data")
@dataclass(kw_only=True, slots=True)
class MixedDataConfig(DataConfig):
    """Several texts by name; their shares add up to 1, and a block of ``seq_len`` tokens is of one of them."""

    MAKES: ClassVar[Source | None] = Source.mixed

    source: Source = Source.mixed
    parts: dict[str, PartConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        require(bool(self.parts), f"{self.KEY}.parts", {}, "give at least one text")
        require(self.tokens is not None, f"{self.KEY}.tokens", None, "shares are of a number of tokens; give one")
        for name, part in self.parts.items():
            self._check_part(part, f"{self.KEY}.parts.{name}")
        total = sum(part.share for part in self.parts.values())
        if abs(total - 1) > ROUNDING:
            shares = ", ".join(f"{name} {part.share:g}" for name, part in self.parts.items())
            raise ConfigError(f"{self.KEY}.parts: the shares ({shares}) add up to {total:g}, not to 1")

    @staticmethod
    def _check_part(part: PartConfig, key: str) -> None:
        legal = "a mix is of texts that are read, or generated"
        require(part.source not in (Source.speech, Source.mixed), f"{key}.source", part.source.name, legal)
        part.check(key)
        part.write.check(f"{key}.write")
        require(0 < part.share <= 1, f"{key}.share", part.share, "must lie above 0 and at most at 1")
