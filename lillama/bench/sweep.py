"""The cells of a sweep side by side: what each costs, how cost grows, and the paper's times in their own column."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from lillama.core.numbers import GIBI, or_absent
from lillama.core.spread import shown, spread
from lillama.report.cells import Cell, varying
from lillama.report.paper import printed_table
from lillama.report.records import printed_name
from lillama.report.tables.markdown import table

TERA = 1e12
PAPER = "table09_time.csv"
Figure = Callable[[Mapping[str, Any]], Any]
Column = tuple[str, Figure]


def _at(*path: str, unit: float = 1.0) -> Figure:
    """Look up a path of a result, in a unit; None where nothing is."""

    def get(result: Mapping[str, Any]) -> Any:
        found: Any = result
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, int | float) and unit != 1.0:
            return found / unit
        return found

    return get


SECONDS = _at("bench", "seconds", "engine", "median")
OPERATIONS = _at("bench", "flops", "recorded")


def total_seconds(result: Mapping[str, Any]) -> float | None:
    """Return the wall time of all stages."""
    return sum(result["seconds"].values()) if result.get("seconds") else None


COLUMNS: list[Column] = [
    ("device", lambda result: (result.get("bench") or {}).get("gpu") or _at("bench", "device")(result)),
    ("schedule", _at("bench", "schedule")),
    ("efficiency", _at("bench", "efficiency")),
    ("s a batch", _at("bench", "seconds", "engine")),
    ("tokens/s", _at("bench", "tokens_per_second", "engine")),
    ("times authors", _at("bench", "speedup", "authors")),
    ("times literal", _at("bench", "speedup", "literal")),
    ("TFLOP a batch", _at("bench", "flops", "recorded", unit=TERA)),
    ("recorded/needed", _at("bench", "flops", "recorded_to_needed")),
    ("model GiB", _at("bench", "memory", "model", unit=GIBI)),
    ("built GiB", _at("bench", "memory", "built", unit=GIBI)),
    ("host before GiB", _at("bench", "memory", "host_before", unit=GIBI)),
    ("host peak GiB", _at("bench", "memory", "peak_host", unit=GIBI)),
    ("device peak GiB", _at("bench", "memory", "peak_device", unit=GIBI)),
    ("budget", _at("bench", "projection", "tokens")),
    ("budget min", _at("bench", "projection", "seconds", unit=60.0)),
    ("said of it", lambda result: _at("bench", "projection", "note")(result) or None),
    ("plan s", _at("seconds", "plan")),
    ("data s", _at("seconds", "data")),
    ("load s", _at("seconds", "load")),
    ("init s", _at("seconds", "init")),
    ("distil s", _at("seconds", "distill")),
    ("all s", total_seconds),
]


def labels(found: Sequence[Cell]) -> list[str]:
    """Name what sets each cell apart, for a figure."""
    keys = varying(found)
    named = (", ".join(f"{key.rpartition('.')[2]}={cell.overrides.get(key, '')}" for key in keys) for cell in found)
    return [name or cell.folder.name for name, cell in zip(named, found, strict=True)]


def bench_table(found: Sequence[Cell], paper: Mapping[str, str]) -> str:
    """Return all cells as a markdown table; a column that no cell has a figure for is left out.

    :param paper: minutes by model (:func:`paper_minutes`); they stand in the last column, whatever was measured.
    """
    columns = [*COLUMNS, ("all s, of the first", _of_the_first(found))]
    shown_columns = [(name, get) for name, get in columns if any(_figure(get, cell) is not None for cell in found)]
    keys = varying(found)
    rows = [
        [*(cell.overrides.get(key, "") for key in keys), cell.status]
        + [_shown(_figure(get, cell)) for _, get in shown_columns]
        for cell in found
    ]
    header = [*keys, "status", *(name for name, _ in shown_columns)]
    models = [_at("settings", "model", "name")(cell.result or {}) for cell in found]
    minutes = [paper.get(printed_name(str(model)), "-") for model in models]
    if any(value != "-" for value in minutes):
        header.append("paper min (Table 9)")
        rows = [[*row, value] for row, value in zip(rows, minutes, strict=True)]
    return table(header, rows)


def paper_minutes(strategy: str = "bottom") -> dict[str, str]:
    """Return the paper's times by printed model (Table 9), each with its hardware."""
    rows = printed_table([PAPER]).rows
    return {row["Model"]: f"{row[strategy.capitalize()].removesuffix('min')} ({strategy}, one A100)" for row in rows}


def growth(found: Sequence[Cell], quantity: Figure = SECONDS) -> dict[str, dict[str, float]]:
    """By key: the exponent e with which a quantity grows, quantity ~ key^e.

    Each pair of cells that differ in this key alone gives one; the median is told with the lowest and the highest.
    """
    measured = {id(cell): float(_figure(quantity, cell) or 0.0) for cell in found}
    slopes: dict[str, list[float]] = {}
    keys = varying(found)
    for one, other in combinations([cell for cell in found if measured[id(cell)] > 0], 2):
        different = [key for key in keys if one.overrides.get(key) != other.overrides.get(key)]
        values = [_number(cell.overrides.get(key, "")) for key in different for cell in (one, other)]
        if len(different) == 1 and None not in values:
            before, after = (float(value) for value in values if value is not None)
            slope = math.log(measured[id(other)] / measured[id(one)]) / math.log(after / before)
            slopes.setdefault(different[0], []).append(slope)
    return {key: spread(values) for key, values in slopes.items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 else None


def _of_the_first(found: Sequence[Cell]) -> Figure:
    """Return the wall time of a cell over that of the first: what a cache saves. For sweeps that measure no engine."""
    first = total_seconds(found[0].result or {})

    def get(result: Mapping[str, Any]) -> float | None:
        seconds = total_seconds(result)
        return None if not first or seconds is None or result.get("bench") else seconds / first

    return get


def _figure(get: Figure, cell: Cell) -> Any:
    return get(cell.result) if cell.result is not None and cell.status == "done" else None


def _shown(value: Any) -> str:
    return or_absent(value, shown)
