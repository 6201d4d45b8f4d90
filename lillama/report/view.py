"""Collect what the page shows, as plain values: tables, their cells with all that is known of each, texts, pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lillama.core.numbers import ABSENT
from lillama.report.counts import counted_as, counts
from lillama.report.entries import MEASURED, Entry, Table
from lillama.report.experiment import Found
from lillama.report.figure import figure_png
from lillama.report.grid import only_in_paper
from lillama.report.notes import notes
from lillama.report.overview import Reported
from lillama.report.shown import difference, measured
from lillama.report.sweep import text_columns
from lillama.report.tables.samples import HEADER, metrics_rows, texts_beside

SAID = {
    "overrides": "asked for",
    "besides": "and told",
    "started": "started",
    "machine": "machine",
    "revision": "revision",
    "fingerprint": "fingerprint",
    "cell": "folder",
    "error": "error",
}


@dataclass(frozen=True, slots=True)
class CellView:
    """A cell of a table: what it shows, the paper's figure, and everything else as labels and words."""

    shown: str
    status: str
    kind: str  # the word that it is counted and filtered under
    paper: str
    difference: str
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RowView:
    """A row: its names and its cells, None where the table has none."""

    names: Sequence[str]
    cells: Sequence[CellView | None]
    only: bool

    @property
    def kinds(self) -> str:
        """List the filters of its cells, separated by commas."""
        return ",".join(dict.fromkeys(cell.kind for cell in self.cells if cell))


def experiment_view(one: Reported) -> dict[str, Any]:
    """Return an experiment with its scales."""
    return {"name": one.name, "problems": one.problems, "scales": [_scale(found) for found in one.scales]}


def _scale(found: Found) -> dict[str, Any]:
    texts = text_columns(found.cells)
    return {
        "scale": found.scale,
        "command": "; ".join(found.commands),
        "counts": counts(found.tables),
        "tables": [table_view(table) for table in found.tables],
        "texts": {"labels": list(texts), "prompts": texts_beside(texts), "header": HEADER, "rows": metrics_rows(texts)},
    }


def table_view(table: Table) -> dict[str, Any]:
    """Return a table with its rows, its notes and its picture."""
    picture = figure_png(table)
    return {
        "name": table.name,
        "title": table.config.title,
        "scale": table.scale,
        "names": list(table.config.rows),
        "columns": list(table.config.columns),
        "rows": [_row(table, row, cells) for row, cells in table.by_row().items()],
        "notes": notes(table),
        "picture": None if picture is None else base64.b64encode(picture).decode("ascii"),
    }


def _row(table: Table, row: Sequence[str], cells: Mapping[str, Entry]) -> RowView:
    found = [cells.get(column) for column in table.config.columns]
    return RowView(row, [_cell(entry, table.scale) if entry else None for entry in found], only_in_paper(cells))


def _cell(entry: Entry, scale: str) -> CellView:
    kind, paper = counted_as(entry.status), entry.paper or ""
    return CellView(measured(entry), entry.status, kind, paper, difference(entry), _details(entry, scale))


def _details(entry: Entry, scale: str) -> dict[str, str]:
    """Return all that is known of a cell, in the order in which one asks for it."""
    source: dict[str, Any] = dict(entry.source)
    if source.get("changed"):
        source["revision"] = f"{source.get('revision')}, with changes"
    known = {
        "status": entry.status,
        "measured": measured(entry) if entry.status == MEASURED else ABSENT,
        "standard error": None if entry.stderr is None else f"{entry.stderr:.4g}",
        "lowest to highest": None if entry.spread is None else "{:.6g} to {:.6g}".format(*entry.spread),
        "the paper": entry.paper,
        "difference": difference(entry),
        "scale": scale,
        **{words: source.get(key) for key, words in SAID.items()},
    }
    return {label: str(words) for label, words in known.items() if words}
