"""Resolve a name for a report: an experiment, one of its tables, or a table or figure of the paper (``table12``).

``python -m lillama.report.names table12`` prints the experiment.
"""

import re
import sys
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from lillama.config.compose import EXPERIMENTS, experiment_names
from lillama.core.errors import ConfigError


def table_names(experiment: str) -> list[str]:
    """Return the tables of an experiment."""
    return list(_tables(experiment))


def named(name: str) -> tuple[str, list[str]]:
    """Return an experiment and those of its tables that are meant: all, where the experiment itself is.

    :raises ConfigError: for a name that means nothing, and for a table that several experiments have.
    """
    for experiment in experiment_names():
        if name == experiment or _bare(name) == _short(experiment):
            return experiment, table_names(experiment)
    found = {experiment: tables for experiment in experiment_names() if (tables := _meant(name, _tables(experiment)))}
    if len(found) > 1:
        raise ConfigError(f"{name}: a table of {', '.join(found)}; name one of these")
    if not found:
        raise ConfigError(f"{name}: no such folder, experiment or table; there are {', '.join(experiment_names())}")
    return next(iter(found.items()))


def _meant(name: str, tables: Mapping[str, Sequence[str]]) -> list[str]:
    """The tables of that name, else of that number, else those beside which the paper's table of that number stands."""
    return (
        [table for table in tables if table == name]
        or [table for table in tables if _short(table) == _bare(name)]
        or [table for table, files in tables.items() if _bare(name) in map(_short, files)]
    )


def _tables(experiment: str) -> dict[str, list[str]]:
    """The tables of an experiment, each with the paper's files beside it, read from its YAML without composing it."""
    own = OmegaConf.load(EXPERIMENTS / f"{experiment}.yaml")
    assert isinstance(own, DictConfig)
    tables = (own.get("experiment") or {}).get("tables") or {}
    return {str(table): list(settings.get("paper") or []) for table, settings in tables.items()}


def _short(name: str) -> str:
    """``table9`` of ``table09_time``; a name without a number of the paper is left as it is."""
    return re.sub(r"^(table|figure)0*(\d+)_.*", r"\1\2", name)


def _bare(name: str) -> str:
    """``table9`` of ``table09``."""
    return re.sub(r"^(table|figure)0*(\d+)$", r"\1\2", name)


if __name__ == "__main__":
    try:
        print(named(sys.argv[-1])[0])
    except ConfigError as error:
        sys.exit(f"error: {error}")
