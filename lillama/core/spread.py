"""Repeated measurements as a median with its spread."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from lillama.core.numbers import three_digits, with_span


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of what was measured."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios of measurements that were taken in the same round."""
    return spread([one / other for one, other in zip(above, below, strict=True)])


def speeds(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    """Return the spread of tokens a second."""
    return spread([tokens / value for value in seconds])


def shown(value: Any) -> str:
    """Return a number for a table, a spread as its median with lowest and highest in brackets."""
    if isinstance(value, dict):
        return with_span(value["median"], value["lowest"], value["highest"])
    return three_digits(value) if isinstance(value, int | float) else str(value)
