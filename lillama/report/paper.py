"""The paper's cells as printed, and its means checked against its own scores."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lillama.config.compose import EXPERIMENTS

FOLDER = EXPERIMENTS / "printed"
MEANS = ("Average", "Avg.")
LAST_DIGIT = 0.0051  # a mean of figures that were rounded themselves, and rounded once more


@dataclass(frozen=True, slots=True)
class Printed:
    """The rows of one table of the paper, by header, as text."""

    rows: Sequence[Mapping[str, str]]

    def find(self, wanted: Mapping[str, str], nearest: str | None = None) -> Mapping[str, str] | None:
        """Return the row with these words under these headers; under ``nearest``, the nearest number."""
        exact = {header: words for header, words in wanted.items() if header != nearest and self._has(header)}
        found = [row for row in self.rows if all(row[header] == words for header, words in exact.items())]
        if not found or not exact:
            return None
        if nearest is None or not wanted[nearest].isdigit():
            return found[0]
        return min(found, key=lambda row: abs(int(row[nearest]) - int(wanted[nearest])))

    def _has(self, header: str) -> bool:
        return bool(self.rows) and header in self.rows[0]


def printed_table(files: Sequence[str]) -> Printed:
    """Return the rows of files under ``experiments/printed``."""
    rows: list[Mapping[str, str]] = []
    for file in files:
        with (FOLDER / file).open(newline="", encoding="utf-8") as opened:
            rows += csv.DictReader(opened)
    return Printed(rows)


def recomputed_mean(row: Mapping[str, str]) -> tuple[str, float] | None:
    """Return the header of a row's mean and what its scores come to, where that is not what is printed."""
    header = next((name for name in MEANS if name in row), None)
    scores = [number for name, text in row.items() if name != header and (number := as_number(text)) is not None]
    if header is None or len(scores) < 2:
        return None
    mean, said = fmean(scores), as_number(row[header])
    return None if said is None or abs(mean - said) < LAST_DIGIT else (header, mean)


def as_number(text: str | None) -> float | None:
    """A printed figure as a number, without its unit; None for words, names with digits and percentages of rows."""
    if text is None:
        return None
    for unit in ("t/s", "GB", "min"):
        text = text.removesuffix(unit).strip()
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
