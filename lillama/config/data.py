"""Configure texts: where they lie, and how calibration text becomes blocks of tokens, is mixed, or is made."""

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Format, InvalidRows, Join, Opening, Order, Packing, Source, SystemTurns, Template
from lillama.config.hashed import by_content
from lillama.config.option import option
from lillama.core.errors import POSITIVE, ConfigError, require

LARGEST_TOKEN_BUDGET = 10**12
# What is not read by itself, but made or taken from elsewhere; each has a schema of its own.
MADE = (Source.mixed, Source.generated, Source.calibration)
WITHOUT_PATH = (Source.stdlib_docs, *MADE)
READ = (Source.local, Source.hub, Source.stdlib_docs)
ROUNDING = 1e-3  # how far from 1 the shares may add up to: thirds are written as 0.333
SLICE = re.compile(r"\d{1,12}:\d{0,12}|:\d{1,12}")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """A text: a Hub dataset (``path`` is its id), a local file or folder, or the topics that ship with CPython.

    ``files`` are the only ones that are read of a Hub dataset or of a local folder, by pattern. ``format`` is the
    parser of local files, ``invalid_rows`` what is done about a row that cannot be read. ``rows`` are the only ones
    that are read of a text, as Python slices: ``:6000``, ``6000:``, ``100:200``; so one file serves for calibration and
    for measuring.
    """

    source: Source = MISSING
    path: str | None = by_content()
    subset: str | None = None
    split: str = "train"
    files: str | None = None
    revision: str | None = None
    format: Format = Format.auto
    invalid_rows: InvalidRows = InvalidRows.refuse
    rows: str | None = None

    def check(self, key: str) -> None:
        """Raise where the source needs a path and has none, or has options that are not its own."""
        chosen, rows, source = self.format, self.invalid_rows, self.source.name
        legal = f"is for local files; {source} text has a form of its own"
        require(chosen is Format.auto or self.source is Source.local, f"{key}.format", chosen.name, legal)
        legal = "is for rows of text; a clip of speech that cannot be read is always refused"
        require(rows is InvalidRows.refuse or self.source is not Source.speech, f"{key}.invalid_rows", rows.name, legal)
        needed = self.source not in WITHOUT_PATH
        require(self.path is not None or not needed, f"{key}.path", self.path, f"{self.source.name} text needs a path")
        TextConfig.check_files(self, key)
        legal = "must be START:STOP, START: or :STOP, rows counted from 0, or null for all"
        known = self.rows is None or SLICE.fullmatch(self.rows) is not None
        require(known, f"{key}.rows", self.rows, legal)
        require(
            self.rows is None or self.source in READ, f"{key}.rows", self.rows, f"{source} text has no rows of its own"
        )

    @property
    def wanted(self) -> slice:
        """Return the rows that are read."""
        start, _, stop = (self.rows or ":").partition(":")
        return slice(int(start) if start else None, int(stop) if stop else None)

    def check_files(self, key: str) -> None:
        """Raise where the pattern leads out of the text's folder."""
        if self.files is not None:
            parts = PurePath(self.files).parts
            inside = bool(parts) and not PurePath(self.files).is_absolute() and ".." not in parts
            require(inside, f"{key}.files", self.files, f"must be a pattern of files below {key}.path")
            whole = all("**" not in part or part == "**" for part in parts)
            require(whole, f"{key}.files", self.files, "** must stand for whole folders")


@option("data", "data")
@dataclass(kw_only=True, slots=True)
class DataConfig(TextConfig):
    """Calibration text and how it becomes blocks of tokens; ``tokens`` null takes the whole text.

    ``KEY`` is the group that errors name; ``MAKES`` what is made by the schema, where the text is not read.
    """

    KEY: ClassVar[str] = "data"
    MAKES: ClassVar[Source | None] = None

    tokens: int | None = 65536
    seq_len: int = 512
    packing: Packing = Packing.packed
    order: Order = Order.shuffled
    template: Template = Template.auto
    system: SystemTurns = SystemTurns.keep
    join: Join = Join.auto
    seed: int = 0

    def __post_init__(self) -> None:
        TextConfig.check(self, self.KEY)
        made = self.source if self.source in MADE else None
        other = (made or self.MAKES or self.source).name
        legal = f"{other} has an option of its own; give {self.KEY.replace('.', '/')}={other}"
        require(made is self.MAKES, f"{self.KEY}.source", self.source.name, legal)
        legal = f"must lie between 1 and {LARGEST_TOKEN_BUDGET:,}, or be null for all"
        require(0 < self.budget <= LARGEST_TOKEN_BUDGET, f"{self.KEY}.tokens", self.tokens, legal)
        require(self.seq_len > 1, f"{self.KEY}.seq_len", self.seq_len, "must be at least 2")

    @property
    def budget(self) -> int:
        """Return the largest number of tokens that are taken."""
        return LARGEST_TOKEN_BUDGET if self.tokens is None else self.tokens


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
