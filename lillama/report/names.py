"""Resolve a name for a report: an experiment, a table, or a table or figure of the paper (``table12``).

``python -m lillama.report.names table12 small`` prints the experiments that make it at a scale.
"""

import re
import sys
from collections.abc import Sequence

from lillama.config.compose import scales_of
from lillama.core.errors import ConfigError
from lillama.report.layout import TableConfig, table_layouts, tables_of


def reported_names() -> list[str]:
    """Return the experiments that tables belong to."""
    return sorted({layout.experiments[0] for layout in table_layouts().values()})


def named(name: str) -> tuple[str, list[str]]:
    """Return an experiment and those of its tables that are meant: all, where the experiment itself is.

    An experiment that only adds rows to another one's table (``table04_dense``) means that table.

    :raises ConfigError: for a name that means nothing, and for a table that several experiments have.

    >>> named("table12")
    ('table08_losses', ['table12_convergence'])
    """
    for experiment in reported_names():
        if name == experiment or _bare(name) == _short(experiment):
            return experiment, list(tables_of(experiment))
    meant = _meant(name, table_layouts())
    homes = sorted({table_layouts()[table].experiments[0] for table in meant})
    if len(homes) > 1:
        raise ConfigError(f"{name}: a table of {', '.join(homes)}; name one of these")
    if not homes:
        raise ConfigError(f"{name}: no such folder, experiment or table; there are {', '.join(reported_names())}")
    return homes[0], meant


def experiments_of(name: str, scale: str) -> list[str]:
    """Return the experiments whose cells are shown under a name, as ``SCALE/NAME``, where they have that scale."""
    _, tables = named(name)
    shown = dict.fromkeys(one for table in tables for one in table_layouts()[table].experiments)
    return [f"{scale}/{one}" for one in shown if scale in scales_of(one)]


def _meant(name: str, tables: dict[str, TableConfig]) -> list[str]:
    """The table of that name, else those of that number, else those beside which the paper's table of it stands.

    Last, the tables that an experiment of that name adds rows to.
    """
    return (
        [table for table in tables if table == name]
        or [table for table in tables if _short(table) == _bare(name)]
        or [table for table, layout in tables.items() if _bare(name) in map(_short, layout.paper)]
        or [table for table, layout in tables.items() if name in layout.experiments]
    )


def _short(name: str) -> str:
    """``table9`` of ``table09_time``; a name without a number of the paper is left as it is."""
    return re.sub(r"^(table|figure)0*(\d+)_.*", r"\1\2", name)


def _bare(name: str) -> str:
    """``table9`` of ``table09``."""
    return re.sub(r"^(table|figure)0*(\d+)$", r"\1\2", name)


def main(words: Sequence[str]) -> int:
    """Print the experiments of a name at a scale; 1 for one that means nothing."""
    name, scale = words
    try:
        print(*experiments_of(name, scale))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
