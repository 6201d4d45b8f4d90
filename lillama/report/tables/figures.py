"""Any measure's figures, for one that has no table of its own: a row a figure, a column a model."""

from collections.abc import Mapping
from typing import Any

from lillama.core.results import MISSING, flatten
from lillama.core.spread import shown
from lillama.report.tables.markdown import table


def figures_table(measured: Mapping[str, Any]) -> str:
    """Figures by their dotted names; what is no number is left to ``results.json``."""
    found = {role: flatten(figures) for role, figures in measured.items()}
    names = dict.fromkeys(name for own in found.values() for name, value in own.items() if _number(value))
    return table(["figure", *found], [[name, *(_text(own.get(name)) for own in found.values())] for name in names])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if not _number(value):
        return MISSING
    return f"{value:,}" if isinstance(value, int) else shown(value)
