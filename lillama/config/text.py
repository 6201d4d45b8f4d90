"""Texts, and how calibration text becomes blocks of tokens."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Format, InvalidRows, Join, Order, Packing, Source, SystemTurns, Template
from lillama.config.hashed import by_content
from lillama.config.option import option
from lillama.core.errors import require

LARGEST_TOKEN_BUDGET = 10**12
# What is not read by itself, but made or taken from elsewhere; each has a schema of its own.
MADE = (Source.mixed, Source.generated, Source.calibration)
WITHOUT_PATH = (Source.stdlib_docs, *MADE)
READ = (Source.local, Source.hub, Source.stdlib_docs)
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
