"""Markdown tables with aligned columns."""

from collections.abc import Sequence

ESCAPED = "\\|<"  # the backslash first: what would end a cell, or be taken for HTML


def cell_text(text: str) -> str:
    """Return a text in one line, with nothing in it that markdown would take for a table's border or for HTML."""
    line = " ".join(text.splitlines())
    for mark in ESCAPED:
        line = line.replace(mark, f"\\{mark}")
    return line.strip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table with aligned columns."""
    widths = [max(len(str(line[column])) for line in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
