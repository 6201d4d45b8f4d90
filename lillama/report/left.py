"""List missing cells on stderr, with the command that runs them."""

from collections.abc import Sequence

from lillama.core.terminal import show
from lillama.report.entries import PAPER_ONLY, Entry, Table
from lillama.report.experiment import Found
from lillama.report.notes import cell_of


def tell_left(found: Found, tables: Sequence[Table]) -> int:
    """Name every cell that leaves an entry open, with its reason; the exit status, 1 where there are any."""
    entries = [entry for table in tables for entry in table.entries if entry.open]
    if not entries:
        return 0
    every = sum(entry.status != PAPER_ONLY for table in tables for entry in table.entries)
    show(f"\n{len(entries)} of {every} entries are not measured:", error=True)
    for cell, reason in dict.fromkeys((cell_of(entry.source), _reason(entry)) for entry in entries):
        show(f"  {cell}: {reason}", error=True)
    for command in found.commands:
        show(f"run them: {command}", error=True)
    return 1


def _reason(entry: Entry) -> str:
    error = " ".join(str(entry.source.get("error") or "").split())
    return f"{entry.status}: {error}" if error else entry.status
