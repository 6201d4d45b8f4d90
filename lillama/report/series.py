"""Collect a figure's numbers: points of lines, gaps where nothing was measured, the paper's printed points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

from lillama.report.entries import MEASURED, PAPER_ONLY, Entry, Table
from lillama.report.paper import as_number, printed_table
from lillama.report.spec import FigureSpec

Group = tuple[tuple[str, str], ...]  # what names a row beside x: header and word


@dataclass(frozen=True, slots=True)
class Point:
    """A measured figure with how far it reaches down and up; a gap (``value`` is NaN) says why in ``gap``."""

    x: float
    value: float
    down: float = 0.0
    up: float = 0.0
    gap: str = ""

    @property
    def measured(self) -> bool:
        """Tell whether there is a figure."""
        return not isnan(self.value)


@dataclass(frozen=True, slots=True)
class Series:
    """One column of one group: its measured points and the paper's, each by x."""

    group: str
    column: str
    points: Sequence[Point]
    paper: Sequence[tuple[float, float]]

    @property
    def drawn(self) -> bool:
        """Tell whether there is anything to draw."""
        return bool(self.paper) or any(one.measured for one in self.points)


def point(x: float, entry: Entry | None) -> Point:
    """Return a cell of the table as a point; a gap, never a zero, where it holds no figure."""
    if entry is None or entry.status != MEASURED or entry.value is None:
        return Point(x, nan, gap="" if entry is None or entry.status == PAPER_ONLY else entry.status)
    if entry.spread is not None:
        return Point(x, entry.value, entry.value - entry.spread[0], entry.spread[1] - entry.value)
    return Point(x, entry.value, entry.stderr or 0.0, entry.stderr or 0.0)


def along_x(table: Table, spec: FigureSpec) -> list[Series]:
    """A series for every group and column, in the order of x; one of nothing but the paper's blanks is left out."""
    assert spec.x is not None
    place = list(table.config.rows).index(spec.x)
    groups: dict[Group, dict[float, Mapping[str, Entry]]] = {}
    for row, cells in table.by_row().items():
        x = as_number(row[place].removesuffix("%"))
        if x is not None:
            named = zip(table.config.rows, row, strict=True)
            groups.setdefault(tuple((h, word) for h, word in named if h != spec.x and word), {})[x] = cells
    own = {group for group, rows in groups.items() if not _only_printed(rows)}
    found = [
        Series(_label(group), column, _points(rows, column), _printed(table, spec.x, group, column))
        for group, rows in groups.items()
        if group in own or not any(set(group) <= set(other) for other in own)
        for column in spec.columns
    ]
    return [series for series in found if series.drawn or any(one.gap for one in series.points)]


def by_row(table: Table, spec: FigureSpec) -> list[Series]:
    """Return a series a column over the table's rows, which are 0, 1, 2, ...; the paper's figures at their row."""
    rows = list(table.by_row().values())
    found = []
    for column in spec.columns:
        points = [point(x, cells.get(column)) for x, cells in enumerate(rows)]
        printed = [(x, as_number(cells[column].paper)) for x, cells in enumerate(rows) if column in cells]
        found.append(Series("", column, points, [(x, value) for x, value in printed if value is not None]))
    return found


def row_names(table: Table) -> list[str]:
    """Name each row, without what is the same in all of them."""
    rows = list(table.by_row())
    places = [place for place in range(len(table.config.rows)) if len({row[place] for row in rows}) > 1]
    return [", ".join(row[place] for place in places if row[place]) or ", ".join(row) for row in rows]


def _only_printed(rows: Mapping[float, Mapping[str, Entry]]) -> bool:
    return all(entry.status == PAPER_ONLY for cells in rows.values() for entry in cells.values())


def _label(group: Group) -> str:
    return ", ".join(word for _, word in group)


def _points(rows: Mapping[float, Mapping[str, Entry]], column: str) -> list[Point]:
    own = {x: cells for x, cells in rows.items() if not _only_printed({x: cells})}  # the paper's x are no gaps
    return [point(x, own[x].get(column)) for x in sorted(own)]


def _printed(table: Table, x: str, group: Group, column: str) -> list[tuple[float, float]]:
    """Return the paper's own points of a group, where the paper has them: its x may lie between those measured."""
    named = dict(group)
    found = []
    for row in printed_table(table.config.paper).rows:
        if all(named.get(header, words) == words for header, words in row.items() if header != x):
            place, value = as_number(row.get(x)), as_number(row.get(column))
            found += [] if place is None or value is None else [(place, value)]
    return sorted(found)
