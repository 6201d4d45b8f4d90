"""The layout of a table: how the results of experiments become its cells (``experiments/tables/NAME.yaml``)."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lillama.config.compose import EXPERIMENTS
from lillama.core.errors import ConfigError

FOLDER = EXPERIMENTS / "tables"


@dataclass(kw_only=True, slots=True)
class TableConfig:
    """Layout of one table.

    ``experiments`` are those whose cells it shows; it belongs to the first. ``rows`` are the headers of the columns
    that name a row, each with a template over what a cell is (``{model}``, ``{reduction}``, ``{loss}``, any
    overridden key by its last part); ``names`` are other names for what comes of it. ``columns`` maps a header to
    what stands under it: a path into the record (``zero_shot.mean.score | percent``), conditions (``{loss:
    teacher}``) under which ``value`` stands there, or null where only the paper says something; in the file a word
    may stand for the mapping, ``nine`` for ``columns/nine.yaml``. ``roles`` are the models of a cell that have rows.
    ``along`` makes a row of every point of a curve (``curve``; ``{tokens}`` and ``point``) or of every entry of a
    mapping (``stable_rank.mean``; ``{key}``, ``point``). ``paper`` are the CSV files with the paper's cells, under
    the same headers; ``nearest`` is the header by which its rows are matched to the nearest number instead of the
    same words. ``claim`` is what the paper says of the table.
    """

    title: str = MISSING
    experiments: list[str] = field(default_factory=list)
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


@functools.cache
def table_layouts() -> dict[str, TableConfig]:
    """Return the layouts of all tables by their name.

    :raises ConfigError: for a file that is no layout.
    """
    return {file.stem: read_layout(file) for file in sorted(FOLDER.glob("*.yaml"))}


def read_layout(file: Path) -> TableConfig:
    """Read one layout.

    :raises ConfigError: for a file that is none: a key that there is not, columns that no file holds.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(values.get("columns"), str):
            shared = file.parent / "columns" / f"{values['columns']}.yaml"
            values["columns"] = yaml.safe_load(shared.read_text(encoding="utf-8"))
        layout = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TableConfig), values))
    except (OSError, yaml.YAMLError, OmegaConfBaseException, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: no layout of a table ({str(error).splitlines()[0]})") from None
    assert isinstance(layout, TableConfig)
    return layout


def tables_of(experiment: str) -> dict[str, TableConfig]:
    """Return the tables that belong to an experiment, the one of its own name first."""
    own = {name: layout for name, layout in table_layouts().items() if layout.experiments[:1] == [experiment]}
    return dict(sorted(own.items(), key=lambda item: item[0] != experiment))
