"""A table or figure of the paper: how the results of a sweep become its cells."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class TableConfig:
    """One table of an experiment.

    ``rows`` are the headers of the columns that name a row, each with a template over what a cell is (``{model}``,
    ``{reduction}``, ``{loss}``, any overridden key by its last part); ``names`` are other names for what comes of it.
    ``columns`` maps a header to what stands under it: a path into the record (``zero_shot.mean.score | percent``),
    conditions (``{loss: teacher}``) under which ``value`` stands there, or null where only the paper says something.
    ``roles`` are the models of a cell that have rows. ``along`` makes a row of every point of a curve
    (``curve``; ``{tokens}`` and ``point``) or of every entry of a mapping (``stable_rank.mean``; ``{key}``, ``point``).
    ``paper`` are the CSV files with the paper's cells, under the same headers; ``nearest`` is the header by which its
    rows are matched to the nearest number instead of the same words. ``claim`` is what the paper says of the table.
    """

    title: str = MISSING
    rows: dict[str, str] = MISSING
    columns: dict[str, Any] = MISSING
    value: str | None = None
    roles: list[str] = field(default_factory=lambda: ["compressed"])
    names: dict[str, str] = field(default_factory=dict)
    along: str | None = None
    paper: list[str] = field(default_factory=list)
    nearest: str | None = None
    claim: str = ""
    figure: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """Report of an experiment: its tables and figures by name."""

    tables: dict[str, TableConfig] = field(default_factory=dict)
