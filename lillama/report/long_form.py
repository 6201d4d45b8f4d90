"""Tables as one CSV, a line a cell, with everything that is known of it."""

import csv
import io
from collections.abc import Iterator, Sequence

from lillama.report.entries import Entry, Table

FIGURES = ("column", "measured", "stderr", "low", "high", "paper", "difference", "status")
ORIGIN = ("machine", "started", "revision", "cell")


def as_csv(tables: Sequence[Table]) -> str:
    """One header for all tables: the names of their rows, each once; a field that a table does not have is empty."""
    headers = list(dict.fromkeys(header for table in tables for header in table.config.rows))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "scale", *headers, *FIGURES, *ORIGIN])
    for table in tables:
        writer.writerows(_lines(table, headers))
    return out.getvalue()


def _lines(table: Table, headers: Sequence[str]) -> Iterator[list[str]]:
    for entry in table.entries:
        own = dict(zip(table.config.rows, entry.row, strict=True))
        yield [table.name, table.scale, *(own.get(header, "") for header in headers), *_figures(entry), *_origin(entry)]


def _figures(entry: Entry) -> list[str]:
    low, high = entry.spread or (None, None)
    measured = entry.text if entry.value is None else entry.value
    known = [entry.column, measured, entry.stderr, low, high, entry.paper, entry.difference, entry.status]
    return ["" if value is None else str(value) for value in known]


def _origin(entry: Entry) -> list[str]:
    source = entry.source
    revision = f"{source.get('revision') or ''}{' with changes' if source.get('changed') else ''}"
    known = [source.get("machine"), source.get("started"), revision, source.get("cell") or source.get("overrides")]
    return [str(value or "") for value in known]
