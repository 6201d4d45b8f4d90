"""Repeated measurements as a median with its spread."""

from collections.abc import Sequence
from statistics import median
from typing import Any


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
        return f"{_number(value['median'])} ({_number(value['lowest'])} to {_number(value['highest'])})"
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"
