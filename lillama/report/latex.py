"""A table of an experiment for LaTeX with booktabs."""

from lillama.report.entries import Table
from lillama.report.frame import made_frame
from lillama.report.grid import grid
from lillama.report.notes import notes

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ a bracket would be a length
    "]": "{]}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
}


def as_latex(table: Table) -> str:
    """Return a ``table`` with its title as caption and its notes beneath; needs ``booktabs`` and UTF-8."""
    laid = grid(table)
    names = len(laid.header) - len(table.config.columns)
    printed = any(entry.paper for entry in table.entries)
    under = [*([laid.legend] if printed else []), *notes(table)]
    cells = made_frame([[*map(escaped, row)] for row in laid.rows], [*map(escaped, laid.header)])
    align = "l" * names + "r" * len(table.config.columns)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escaped(table.config.title)}}}",
            cells.to_latex(index=False, escape=False, column_format=align).rstrip(),
            *(rf"\par\footnotesize {escaped(note)}" for note in under),
            r"\end{table}",
        ]
    )


def escaped(text: str) -> str:
    """Return a text in one line in which nothing is a command."""
    return "".join(SPECIAL.get(mark, mark) for mark in " ".join(text.split()))
