"""The cells of a table: what the paper prints, what was measured, and where that comes from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lillama.report.cells import Cell
from lillama.report.layout import TableConfig
from lillama.report.paper import Printed, as_number, printed_table, recomputed_mean
from lillama.report.records import NO_POINT, Record, at, records

MEASURED, OOM, NOT_RUN, PAPER_ONLY, NO_FIGURE = "measured", "OOM", "not run", "paper only", "no figure"
WORDS = "words"
# Overrides that change no figure, or that a sweep's folder says already.
WITHOUT_EFFECT = {"experiments", "scale", "name", "progress", "logger", "save_checkpoint", "cache_limit_gb"}
AT_A_POINT = ("{tokens}", "{key}")  # what names a point of a curve, or an entry of a mapping
Cells = Mapping[tuple[tuple[str, ...], str], "Entry"]
UNITS = {"percent": 100.0, "minutes": 1 / 60, "GB": 1e-9, "billion": 1e-9, "million": 1e-6, "thousand": 1e-3, "": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell of a table.

    ``paper`` is what the paper prints, ``value`` what was measured, in the same unit, with its standard error or its
    lowest and highest; ``text`` is what was found where that is words. ``status`` is ``measured``, ``MISSING``,
    ``FAILED``, ``OOM``, ..., or ``paper only`` for what is not run at this scale. ``source`` says where a figure comes
    from.
    """

    row: tuple[str, ...]
    column: str
    status: str
    paper: str | None = None
    value: float | None = None
    text: str | None = None
    stderr: float | None = None
    spread: tuple[float, float] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def difference(self) -> float | None:
        """Measured less printed."""
        printed = as_number(self.paper)
        return None if printed is None or self.value is None else self.value - printed

    @property
    def open(self) -> bool:
        """Tell whether something is left to run; a cell that is done and has no such figure will not get one."""
        return self.status not in (MEASURED, OOM, NOT_RUN, NO_FIGURE, PAPER_ONLY)


@dataclass(frozen=True, slots=True)
class Table:
    """A table whole: its name, what was asked of it, its cells by row, and what is to be said of the paper's."""

    name: str
    config: TableConfig
    scale: str
    entries: Sequence[Entry]
    notes: Sequence[str]

    @property
    def headers(self) -> list[str]:
        """Of the columns that name a row, then of the others."""
        return [*self.config.rows, *self.config.columns]

    def by_row(self) -> dict[tuple[str, ...], dict[str, Entry]]:
        """Return the cells of every row by their column."""
        found: dict[tuple[str, ...], dict[str, Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.row, {})[entry.column] = entry
        return found


def make_table(name: str, config: TableConfig, scale: str, cells: Iterable[Cell]) -> Table:
    """Return the table that these cells make; then, as rows of their own, what the paper prints of other models."""
    printed = printed_table(config.paper)
    found: dict[tuple[tuple[str, ...], str], Entry] = {}
    for cell in cells:
        for record in records(cell, roles=config.roles, along=config.along):
            row = {header: _named(words.format_map(record.shown), config) for header, words in config.rows.items()}
            beside = printed.find(row, config.nearest) or {}
            for entry in _entries(record, config, tuple(row.values()), beside):
                known = found.get((entry.row, entry.column))
                if known is None or (known.open and not entry.open):
                    found[entry.row, entry.column] = entry
    own = _along_others(config, printed, found)
    return Table(name, config, scale, [*own.values(), *_paper_only(config, printed, own)], _notes(config, printed))


def _along_others(config: TableConfig, printed: Printed, found: Cells) -> Cells:
    """Put a cell that has no points yet, as MISSING, at the points of its neighbours in the same rows."""
    place = [number for number, words in enumerate(config.rows.values()) if words in AT_A_POINT]
    own = dict(found)
    for (row, column), entry in found.items():
        if config.along is None or not place or not entry.open or row[place[0]] != NO_POINT:
            continue
        others = [other for other in dict.fromkeys(row for row, _ in found) if _differ_at(row, other) == place]
        for other in others:
            beside = printed.find(dict(zip(config.rows, other, strict=True)), config.nearest) or {}
            own.setdefault((other, column), replace(entry, row=other, paper=beside.get(column) or None))
        if others:
            del own[row, column]
    return own


def _differ_at(row: Sequence[str], other: Sequence[str]) -> list[int]:
    return [number for number, (own, its) in enumerate(zip(row, other, strict=True)) if own != its]


def _named(words: str, config: TableConfig) -> str:
    return config.names.get(words, words)


def _entries(record: Record, config: TableConfig, row: tuple[str, ...], beside: Mapping[str, str]) -> Iterator[Entry]:
    for column, what in config.columns.items():
        path, printed = config.value if isinstance(what, Mapping) else what, beside.get(column) or None
        if what is None:
            yield Entry(row=row, column=column, status=PAPER_ONLY, paper=printed)
            continue
        if isinstance(what, Mapping) and any(record.raw.get(key) != str(words) for key, words in what.items()):
            continue
        assert path is not None
        yield _entry(record, path, row=row, column=column, paper=printed)


def _entry(record: Record, path: str, *, row: tuple[str, ...], column: str, paper: str | None) -> Entry:
    place, _, unit = (part.strip() for part in path.partition("|"))
    found, factor = at(record.figures, place), UNITS.get(unit, 1.0)
    words = unit == WORDS and isinstance(found, str)
    known: dict[str, Any] = {"row": row, "column": column, "paper": paper, "source": _source(record.cell)}
    if isinstance(found, Mapping):  # repeated measurements
        low, high = sorted((factor * found["lowest"], factor * found["highest"]))
        return Entry(**known, status=MEASURED, value=factor * found["median"], spread=(low, high))
    if words:
        return Entry(**known, status=MEASURED, text=found)
    if isinstance(found, str):  # "OOM", "not run"
        return Entry(**known, status=found)
    if found is None:
        return Entry(**known, status=_why_not(record.cell))
    error = at(record.figures, f"{place.removesuffix('.score')}.stderr") if place.endswith(".score") else None
    stderr = None if error is None else factor * error
    return Entry(**known, status=MEASURED, value=factor * found, stderr=stderr)


def _why_not(cell: Cell) -> str:
    """Why a cell has no figure."""
    if cell.status == "done":
        return NO_FIGURE
    error = str((cell.result or {}).get("error") or "")
    return OOM if error.startswith("DeviceMemoryError") else cell.status


def _source(cell: Cell) -> dict[str, Any]:
    asked = " ".join(f"{key}={value}" for key, value in cell.overrides.items())
    if cell.result is None:
        return {"overrides": asked}
    known = cell.result.get("provenance", {})
    hardware, git = known.get("hardware", {}), known.get("git", {})
    return {
        "overrides": asked,
        "besides": " ".join(_besides(cell)),
        "cell": cell.folder.name,
        "started": known.get("started"),
        "revision": git.get("revision"),
        "changed": git.get("dirty"),
        "machine": hardware.get("gpu") or f"CPU, {hardware.get('threads')} threads",
        "fingerprint": cell.result.get("fingerprint"),
        "error": cell.result.get("error"),
    }


def _besides(cell: Cell) -> Iterator[str]:
    """List the overrides that the sweep does not have and that may change a figure."""
    for word in (cell.result or {}).get("overrides", []):
        key, _, value = word.lstrip("+~").partition("=")
        quiet = key in WITHOUT_EFFECT or key.startswith("hydra") or key.endswith(("path", "_dir"))
        if not quiet and cell.overrides.get(key) != value:
            yield word


def _paper_only(config: TableConfig, printed: Printed, found: Mapping[Any, Entry]) -> Iterator[Entry]:
    """Yield the paper's rows that no cell of this scale stands beside."""
    beside = {entry.paper for entry in found.values()}
    rows = {row for row, _ in found}
    for own in printed.rows:
        row = tuple(own.get(header, "") for header in config.rows)
        cells = {column: own[column] for column in config.columns if own.get(column)}
        matched = row in rows or (config.nearest is not None and set(cells.values()) <= beside)
        if not matched:
            yield from (Entry(row=row, column=column, status=PAPER_ONLY, paper=text) for column, text in cells.items())


def _notes(config: TableConfig, printed: Printed) -> list[str]:
    """Note where the paper's means are not those of its own scores."""
    notes = []
    for row in printed.rows:
        other = recomputed_mean(row)
        if other is not None:
            name = ", ".join(row[header] for header in config.rows if header in row)
            notes.append(f"{name}: the paper prints {row[other[0]]} as the mean; its own scores come to {other[1]:.2f}")
    return notes
