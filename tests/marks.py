"""Choose which cases of a parametrised test `make test` runs; `make test-long` runs the others."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def long_unless(short: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """Mark the cases long that ``short`` does not hold for; a tuple is handed to it part by part."""
    return [case if short(*_parts(case)) else pytest.param(*_parts(case), marks=pytest.mark.long) for case in cases]


def _parts(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
