"""A table of an experiment as markdown, for a terminal and for a file."""

from lillama.report.entries import Table
from lillama.report.grid import grid
from lillama.report.notes import notes
from lillama.report.tables.markdown import cell_text
from lillama.report.tables.markdown import table as markdown_table


def as_markdown(table: Table) -> str:
    """Its title, the table, and its notes as a list."""
    laid = grid(table)
    body = markdown_table([*map(cell_text, laid.header)], [[*map(cell_text, row)] for row in laid.rows])
    printed = any(entry.paper for entry in table.entries)
    under = [*([laid.legend] if printed else []), *notes(table)]
    return "\n\n".join(
        [f"**{table.name}**: {table.config.title}", body, "\n".join(f"- {cell_text(note)}" for note in under)]
    )
