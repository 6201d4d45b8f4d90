"""The cells of a sweep in one table, and their generated texts side by side."""

from collections.abc import Sequence
from typing import Any

from lillama.core.numbers import or_absent, two_decimals
from lillama.core.results import flatten
from lillama.report.cells import Cell, all_overrides, varying
from lillama.report.tables.markdown import table
from lillama.report.tables.samples import samples_page

FIGURES = {
    "parameters.compressed": "parameters",
    "reduction.realised": "removed",
    "perplexity.dense": "dense",
    "perplexity.start": "start",
    "perplexity.end": "end",
    "perplexity.finetuned": "fine-tuned",
    "tokens": "tokens",
    "seconds.distill": "distil s",
}
WHERE_ANY = {"perplexity.finetuned"}  # a column only where a cell has it


def sweep_table(found: Sequence[Cell]) -> str:
    """Return all cells as a markdown table: what sets each apart, its status and its figures."""
    keys = varying(found) or all_overrides(found)
    results = [flatten(cell.result or {}) for cell in found]
    columns = [key for key in FIGURES if key not in WHERE_ANY or any(key in result for result in results)]
    rows = [
        [*(cell.overrides.get(key, "") for key in keys), cell.status, *(_shown(key, flat.get(key)) for key in columns)]
        for cell, flat in zip(found, results, strict=True)
    ]
    return table([*keys, "status", *(FIGURES[key] for key in columns)], rows)


def texts_side_by_side(found: Sequence[Cell]) -> str:
    """Return the texts of all cells that wrote any, as :func:`text_columns` has them; nothing where none did."""
    columns = text_columns(found)
    return samples_page(columns) if columns else ""


def text_columns(found: Sequence[Cell]) -> dict[str, Any]:
    """Set out what the stage samples found: a column for each dense model, and one for each compressed one.

    A model is named by what sets its cell apart, one that is alone by what was removed of it.
    """
    keys = varying(found)
    columns: dict[str, Any] = {}
    for cell in (cell for cell in found if cell.result is not None):
        result: Any = cell.result
        own = ", ".join(cell.overrides.get(key, "") for key in keys)
        for role, figures in result["measured"].get("samples", {}).items():
            label = role if role == "dense" else own or f"{result['reduction'].get('realised', 0):.0%} smaller"
            if figures not in columns.values():  # a dense model beside each of several compressed ones
                columns[f"{label} ({own})" if label in columns else label] = figures
    return columns


def _shown(key: str, value: Any) -> str:
    if key == "reduction.realised" and value is not None:
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else or_absent(value, two_decimals)
