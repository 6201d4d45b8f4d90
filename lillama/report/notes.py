"""Write the footnotes of a table: its scale, the paper's claim and slips, and where its figures come from."""

from collections.abc import Iterator, Mapping
from typing import Any

from lillama.report.entries import MEASURED, Table

ALONE = "the only cell"


def notes(table: Table) -> list[str]:
    """Return a line each: the scale, what the paper says, where it disagrees with itself, what was measured where."""
    claim = [f"the paper says: {table.config.claim}"] if table.config.claim else []
    return [f"scale: {table.scale}", *claim, *table.notes, *origins(table)]


def origins(table: Table) -> Iterator[str]:
    """Yield a line for every machine, revision and day, with the cells that were measured there and then."""
    found: dict[str, dict[str, None]] = {}
    for entry in table.entries:
        if entry.status == MEASURED:
            found.setdefault(origin(entry.source), {})[cell_of(entry.source)] = None
    yield from (f"{place}: {'; '.join(own)}" for place, own in found.items())


def origin(source: Mapping[str, Any]) -> str:
    """Return a machine, a revision and a day in words."""
    return f"{source.get('machine') or 'unknown machine'}, {revision(source)}, {day(source)}"


def revision(source: Mapping[str, Any]) -> str:
    """Return the first digits of the revision that ran, and whether it had been changed."""
    if not source.get("revision"):
        return "no known revision"
    return f"revision {str(source['revision'])[:7]}{' with changes' if source.get('changed') else ''}"


def day(source: Mapping[str, Any]) -> str:
    """Return the day on which a cell was started."""
    return str(source.get("started") or "no known date").partition("T")[0]


def cell_of(source: Mapping[str, Any]) -> str:
    """A cell by what it overrides; with what else it was told, since that may not be what the experiment says."""
    besides = f" (with {source['besides']})" if source.get("besides") else ""
    return f"{source.get('overrides') or ALONE}{besides}"
