"""A table laid out as text: the paper's cell in brackets beside the measured one, or beneath it in a wide table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lillama.core.numbers import ABSENT
from lillama.report.entries import PAPER_ONLY, Entry, Table
from lillama.report.shown import beside, measured

WIDEST = 120  # characters of a line up to which both figures stand in one cell
ONLY = "paper only"
Row = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Grid:
    """A header and its rows, as plain text; ``legend`` says where the paper's cells are."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str

    @property
    def width(self) -> int:
        """Characters of a line."""
        return sum(max(map(len, column)) + 3 for column in zip(self.header, *self.rows, strict=True))


def grid(table: Table, widest: int = WIDEST) -> Grid:
    """Return a line a row with the paper's cells in brackets; where that is too wide, a line for each of the two."""
    inline = _inline(table)
    return inline if inline.width <= widest else _lines(table)


def only_in_paper(cells: Row) -> bool:
    """Tell whether a row is the paper's alone."""
    return all(entry.status == PAPER_ONLY for entry in cells.values())


def _inline(table: Table) -> Grid:
    rows = []
    for row, cells in table.by_row().items():
        first = f"{row[0]} ({ONLY})" if only_in_paper(cells) else row[0]
        found = (cells.get(column) for column in table.config.columns)
        rows.append([first, *row[1:], *(ABSENT if entry is None else beside(entry) for entry in found)])
    return Grid(table.headers, rows, "[in brackets]: the paper's figure")


def _lines(table: Table) -> Grid:
    rows: list[list[str]] = []
    for row, cells in table.by_row().items():
        rows += _two_lines(row, cells, list(table.config.columns))
    return Grid([*table.config.rows, "by", *table.config.columns], rows, "by paper: the paper's figures")


def _two_lines(row: Sequence[str], cells: Row, columns: Sequence[str]) -> Iterator[list[str]]:
    printed = [entry.paper if (entry := cells.get(column)) and entry.paper else "" for column in columns]
    if only_in_paper(cells):
        yield [*row, ONLY, *printed]
        return
    own = (cells.get(column) for column in columns)
    yield [*row, "here", *(ABSENT if entry is None else measured(entry) for entry in own)]
    if any(printed):
        yield [*("" for _ in row), "paper", *printed]
