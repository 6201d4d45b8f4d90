"""A table of an experiment for LaTeX with booktabs."""

from collections.abc import Sequence

from lillama.report.entries import Table
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
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escaped(table.config.title)}}}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * len(table.config.columns)}}}",
            r"\toprule",
            _line(laid.header),
            r"\midrule",
            *map(_line, laid.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escaped(note)}" for note in under),
            r"\end{table}",
        ]
    )


def escaped(text: str) -> str:
    """Return a text in one line in which nothing is a command."""
    return "".join(SPECIAL.get(mark, mark) for mark in " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(map(escaped, cells))} \\"
