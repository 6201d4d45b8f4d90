"""The ``figure:`` of a table: which kind of chart, over which header, of which columns."""

from dataclasses import dataclass, fields
from typing import Any

from lillama.core.errors import ConfigError
from lillama.report.layout import TableConfig

CURVE, LINE, BARS = "curve", "line", "bars"
KINDS = (CURVE, LINE, BARS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSpec:
    """Specification of a table's figure.

    ``curve`` draws along ``x``, seen tokens in millions, a line a column, a panel for what else names the rows; its
    y axis is logarithmic. ``line`` draws along ``x``, any number that names a row, a panel a column, a line for what
    else names the rows. ``bars`` draws a group a row, a bar a column. ``columns`` are those that are drawn, all where
    none are named; ``y`` is written at the axis; ``log`` overrides whether it is logarithmic.
    """

    kind: str
    x: str | None = None
    columns: tuple[str, ...] = ()
    y: str = ""
    log: bool = False


def figure_spec(name: str, config: TableConfig) -> FigureSpec | None:
    """Return the figure that a table asks for; None where it asks for none.

    :raises ConfigError: for a kind, a key, a header or a column that there is not.
    """
    asked: dict[str, Any] = dict(config.figure)
    if not asked:
        return None
    where = f"experiments/tables/{name}.yaml: figure"
    _require(asked.get("kind"), KINDS, f"{where}.kind")
    for key in asked:
        _require(key, [field.name for field in fields(FigureSpec)], where)
    if asked["kind"] != BARS:
        _require(asked.get("x"), list(config.rows), f"{where}.x")
    columns = tuple(asked.pop("columns", None) or config.columns)
    for column in columns:
        _require(column, list(config.columns), f"{where}.columns")
    return FigureSpec(columns=columns, **{"log": asked["kind"] == CURVE, **asked})


def _require(value: Any, legal: Any, key: str) -> None:
    if value not in legal:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(legal)}")
