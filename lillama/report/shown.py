"""One cell of a table in words: what was measured, with its error, or why nothing was; and the paper's beside it."""

from lillama.core.numbers import ABSENT, plain_number, with_error, with_span
from lillama.report.entries import MEASURED, PAPER_ONLY, Entry


def measured(entry: Entry) -> str:
    """Format a measurement: ``57.12 ± 0.41``, ``8,622 (8,500 to 8,700)``, or why none: ``MISSING``, ``OOM``."""
    if entry.status == PAPER_ONLY:
        return ABSENT
    if entry.status != MEASURED or entry.value is None:
        return entry.text or entry.status
    if entry.stderr is not None:
        return with_error(entry.value, entry.stderr)
    if entry.spread is not None:
        return with_span(entry.value, *entry.spread, plain_number)
    return plain_number(entry.value)


def beside(entry: Entry) -> str:
    """Format what was measured and then, in square brackets, what the paper prints."""
    own = [] if entry.status == PAPER_ONLY and entry.paper else [measured(entry)]
    return " ".join([*own, *([f"[{entry.paper}]"] if entry.paper else [])])


def difference(entry: Entry) -> str:
    """Measured less printed, with its sign; nothing where one of them is no number."""
    found = entry.difference
    return "" if found is None else f"{'+' if found >= 0 else '-'}{plain_number(abs(round(found, 6)))}"
