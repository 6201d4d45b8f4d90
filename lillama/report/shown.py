"""One cell of a table in words: what was measured, with its error, or why nothing was; and the paper's beside it."""

from lillama.report.entries import MEASURED, PAPER_ONLY, Entry

NOTHING = "-"


def number(value: float) -> str:
    """A figure for a table: two decimals, none for whole numbers and from 1,000 on, more where two would say 0."""
    if value.is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def measured(entry: Entry) -> str:
    """Format a measurement: ``57.12 ± 0.41``, ``8,622 (8,500 to 8,700)``, or why none: ``MISSING``, ``OOM``."""
    if entry.status == PAPER_ONLY:
        return NOTHING
    if entry.status != MEASURED or entry.value is None:
        return entry.text or entry.status
    return with_error(entry)


def with_error(entry: Entry) -> str:
    """Return a measured figure with its standard error, or with its lowest and highest in brackets."""
    assert entry.value is not None
    if entry.stderr is not None:
        return f"{entry.value:,.2f} ± {entry.stderr:.2f}"
    if entry.spread is not None:
        return f"{number(entry.value)} ({number(entry.spread[0])} to {number(entry.spread[1])})"
    return number(entry.value)


def beside(entry: Entry) -> str:
    """Format what was measured and then, in square brackets, what the paper prints."""
    own = [] if entry.status == PAPER_ONLY and entry.paper else [measured(entry)]
    return " ".join([*own, *([f"[{entry.paper}]"] if entry.paper else [])])


def difference(entry: Entry) -> str:
    """Measured less printed, with its sign; nothing where one of them is no number."""
    found = entry.difference
    return "" if found is None else f"{'+' if found >= 0 else '-'}{number(abs(round(found, 6)))}"
