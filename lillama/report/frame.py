"""Tables as a data frame of pandas: a row a cell, with everything that is known of it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lillama.core.errors import ConfigError
from lillama.report.entries import Entry, Table

if TYPE_CHECKING:
    from pandas import DataFrame

FIGURES = ("column", "measured", "stderr", "low", "high", "paper", "difference", "status")
ORIGIN = ("machine", "started", "revision", "cell")


def frame(tables: Sequence[Table]) -> "DataFrame":
    """Make a frame of all tables: the names of their rows, each a column once, then figures and where they are from.

    What is not known is None; ``status`` says why (``OOM``, ``MISSING``).

    :raises ConfigError: where pandas is not installed.
    """
    headers = list(dict.fromkeys(header for table in tables for header in table.config.rows))
    rows = [row for table in tables for row in _rows(table, headers)]
    return made_frame(rows, ["table", "scale", *headers, *FIGURES, *ORIGIN])


def as_csv(tables: Sequence[Table]) -> str:
    """Write the frame of all tables as CSV; what is not known is empty."""
    return frame(tables).to_csv(index=False, lineterminator="\n")


def made_frame(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> "DataFrame":
    """Make a frame whose values stay as they are: a whole number beside an empty cell does not become another number.

    :raises ConfigError: where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError("--format: csv and latex need the package pandas (pip install pandas)") from None
    return pandas.DataFrame(rows, columns=list(columns), dtype=object)


def _rows(table: Table, headers: Sequence[str]) -> Iterator[list[Any]]:
    for entry in table.entries:
        own = dict(zip(table.config.rows, entry.row, strict=True))
        yield [table.name, table.scale, *(own.get(header) for header in headers), *_figures(entry), *_origin(entry)]


def _figures(entry: Entry) -> list[Any]:
    low, high = entry.spread or (None, None)
    measured = entry.text if entry.value is None else entry.value
    return [entry.column, measured, entry.stderr, low, high, entry.paper, entry.difference, entry.status]


def _origin(entry: Entry) -> list[Any]:
    source = entry.source
    revision = f"{source.get('revision') or ''}{' with changes' if source.get('changed') else ''}"
    return [source.get("machine"), source.get("started"), revision, source.get("cell") or source.get("overrides")]
