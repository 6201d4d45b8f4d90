"""Zero-shot scores: a row a task, dense and compressed beside each other, and what is left of the dense score."""

from collections.abc import Mapping
from typing import Any

from lillama.core.numbers import with_error
from lillama.core.results import MISSING
from lillama.report.tables.markdown import table

MEAN = "mean"


def zero_shot_table(measured: Mapping[str, Any]) -> str:
    """Scores in percent with their standard errors; recovery is compressed over dense, where both were measured."""
    roles = list(measured)
    names = list(dict.fromkeys(name for figures in measured.values() for name in figures.get("tasks", {})))
    recovery: Mapping[str, float] = next(
        (figures["recovery"] for figures in measured.values() if "recovery" in figures), {}
    )
    rows = [_row(name, measured, recovery) for name in [*names, MEAN]]
    header = ["task", "metric", "version", "documents", *roles, *(["recovery"] if recovery else [])]
    return table(header, rows)


def _row(name: str, measured: Mapping[str, Any], recovery: Mapping[str, float]) -> list[str]:
    own = [figures.get(MEAN) if name == MEAN else figures.get("tasks", {}).get(name) for figures in measured.values()]
    known: Mapping[str, Any] = next((score for score in own if score is not None), {})
    said = [name, *(str(known.get(key, "")) for key in ("metric", "version", "documents"))]
    left = [f"{recovery[name]:.1%}" if name in recovery else "-"] if recovery else []
    return [*said, *(_shown(score) for score in own), *left]


def _shown(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return MISSING
    return with_error(100 * score["score"], None if score["stderr"] is None else 100 * score["stderr"])
