"""Texts, and how calibration text becomes blocks of tokens."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Join, Order, Packing, Source, SystemTurns, Template
from lillama.errors import require

LARGEST_TOKEN_BUDGET = 10**12
# What is not read by itself, but made or taken from elsewhere; each has a schema of its own.
MADE = (Source.mixed, Source.generated, Source.calibration)
WITHOUT_PATH = (Source.stdlib_docs, *MADE)


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """A text: a Hub dataset (``path`` is its id), a local file or folder, or the topics that ship with CPython.

    ``files`` are the only ones that are read of a Hub dataset or of a local folder, by pattern.
    """

    source: Source = MISSING
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    files: str | None = None
    revision: str | None = None

    def check(self, key: str) -> None:
        """Raise where the source needs a path and has none."""
        needed = self.source not in WITHOUT_PATH
        require(self.path is not None or not needed, f"{key}.path", self.path, f"{self.source.name} text needs a path")


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
        """How many tokens are taken at most."""
        return LARGEST_TOKEN_BUDGET if self.tokens is None else self.tokens
