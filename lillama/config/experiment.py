"""A table or figure of the paper: how the results of a sweep become its cells."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class TableConfig:
    """One table of an experiment.

    ``rows`` are the headers of the columns that name a row, each with a template over what a cell is (``{model}``,
    ``{reduction}``, ``{loss}``, any overridden key by its last part; ``{tokens}`` along a curve). ``columns`` maps a
    header to what stands under it: a path into the record (``zero_shot.mean.score | percent``), or conditions
    (``{loss: teacher}``) under which ``value`` stands there. ``roles`` are the models of a cell that have rows.
    ``along`` makes a row of every point of a curve (``curve``, ``finetune.curve``). ``paper`` is the CSV file with the
    paper's cells, under the same headers; ``nearest`` is the header by which its rows are matched to the nearest
    number instead of the same words. ``claim`` is what the paper says of the table.
    """

    title: str = MISSING
    rows: dict[str, str] = MISSING
    columns: dict[str, Any] = MISSING
    value: str | None = None
    roles: list[str] = field(default_factory=lambda: ["compressed"])
    along: str | None = None
    paper: str | None = None
    nearest: str | None = None
    claim: str = ""
    figure: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """What an experiment reports: its tables and figures by name."""

    tables: dict[str, TableConfig] = field(default_factory=dict)
