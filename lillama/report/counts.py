"""Count the cells of some tables that are measured, and what became of the others."""

from collections.abc import Iterable

from lillama.core.results import MISSING
from lillama.report.entries import MEASURED, OOM, PAPER_ONLY, Table

FAILED, OTHER = "FAILED", "other"
COUNTED = (MEASURED, MISSING, FAILED, OOM, OTHER)


def counts(tables: Iterable[Table]) -> dict[str, int]:
    """Entries by status, the paper's own rows left out; ``other`` are those under way or left out for time."""
    found = dict.fromkeys(COUNTED, 0)
    for table in tables:
        for entry in table.entries:
            if entry.status != PAPER_ONLY:
                found[counted_as(entry.status)] += 1
    return found


def counted_as(status: str) -> str:
    """Return the word that a status is counted under."""
    return status if status in (*COUNTED, PAPER_ONLY) else OTHER


def in_words(found: dict[str, int]) -> str:
    """Counts in a line; ``other`` only where there are any."""
    return ", ".join(f"{number} {word}" for word, number in found.items() if number or word != OTHER)
