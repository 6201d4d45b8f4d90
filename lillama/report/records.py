"""Flatten a cell's results.json into records for tables: one per model (dense, compressed), or per point of a curve."""

import csv
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lillama.config.compose import EXPERIMENTS
from lillama.core.results import COMPRESSED, DENSE
from lillama.report.cells import Cell

NO_POINT = "-"
OWN = "own"  # whichever the cell is about
TUNED = {"full": " FT", "lora": " LoRA"}
AS_THEY_ARE = (
    "seconds",
    "peak_memory",
    "peak_device_memory",
    "tokens",
    "matrices",
    "blocks",
    "curve",
    "finetune",
)
MAKING = ("plan", "load", "data", "init", "distill")
NAMES = EXPERIMENTS / "printed" / "names.csv"


@dataclass(frozen=True, slots=True)
class Record:
    """One model of one cell: ``raw`` what was overridden, by the last part of the key; ``shown`` how a table says it.

    ``figures`` is what was found of this model: ``zero_shot``, ``throughput``, ``parameters``, ``perplexity``, ...
    """

    cell: Cell
    role: str
    raw: Mapping[str, str]
    shown: Mapping[str, str]
    figures: Mapping[str, Any]


def records(cell: Cell, *, roles: list[str], along: str | None) -> Iterator[Record]:
    """Yield the records of a cell; of one without a result too, so that a table can say that it is missing.

    :param along: the curve whose points have a row each.
    """
    own = {key.rpartition(".")[2]: value for key, value in cell.overrides.items()}
    raw = {**cell.given, **own}
    for role in roles:
        figures, shown = _figures(cell.result or {}, role), _shown(raw, role)
        if along is None:
            yield Record(cell, role, raw, shown, figures)
            continue
        for said, point in _points(at(figures, along)):
            yield Record(cell, role, raw, {**shown, **said}, {**figures, "point": point})


def _points(found: Any) -> Iterator[tuple[dict[str, str], Any]]:
    """The points of a curve by their tokens, the entries of a mapping by their key; one of nothing where nothing is."""
    if isinstance(found, Mapping):
        yield from (({"key": str(key)}, value) for key, value in found.items())
    elif found:
        yield from (({"tokens": str(tokens)}, value) for tokens, value in found)
    else:
        yield {"key": NO_POINT, "tokens": NO_POINT}, None


def at(values: Any, path: str) -> Any:
    """Look up a dotted path; None where nothing is; a word on the way (``OOM``) stands for all beneath it."""
    for key in path.split("."):
        if isinstance(values, str):
            return values
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _figures(result: Mapping[str, Any], role: str) -> dict[str, Any]:
    if role == OWN:
        role = COMPRESSED if COMPRESSED in result.get("parameters", {}) else DENSE
    measured, perplexity = result.get("measured", {}), result.get("perplexity", {})
    return {
        **{key: result.get(key) for key in AS_THEY_ARE},
        **{stage: found.get(role) for stage, found in measured.items()},
        **{f"{stage}_ratios": found["ratios"] for stage, found in measured.items() if "ratios" in found},
        "loss_rise": result.get("loss_rise") if role == COMPRESSED else None,
        "compression_seconds": _compression_seconds(result),
        "parameters": result.get("parameters", {}).get(role),
        "removed": _removed(result, role),
        "perplexity": {**perplexity, **_of_role(perplexity, role)},
    }


def _of_role(perplexity: Mapping[str, float], role: str) -> dict[str, float | None]:
    """Return the perplexity of a role's own model: before fine-tuning (``own``), and after whatever it went through."""
    own = perplexity.get(DENSE if role == DENSE else "end")
    return {"own": own, "final": own if role == DENSE else perplexity.get("finetuned", own)}


def _compression_seconds(result: Mapping[str, Any]) -> float | None:
    """Return the time that the making took, without what was measured."""
    seconds = result.get("seconds")
    return sum(seconds.get(stage, 0.0) for stage in MAKING) if seconds else None


def _removed(result: Mapping[str, Any], role: str) -> float | None:
    """Return the share removed; none of a run that failed before it had a model, not 0."""
    if role == COMPRESSED:
        return at(result, "reduction.realised")
    return 0.0 if result.get("parameters") or result.get("status") == "done" else None


def _shown(raw: Mapping[str, str], role: str) -> dict[str, str]:
    cut = "0%" if role == DENSE else f"{float(raw['reduction']):.0%}"
    steps = raw.get("stages", "").strip("[]").replace(" ", "")
    own = {
        "model": printed_name(raw["model"]),
        "role": role,
        "reduction": cut,
        "cut": "" if role == DENSE else f" {cut}",
        "tuned": TUNED.get(raw.get("finetune", ""), "") if role != DENSE else "",
        "steps": steps,
        "made": "distilled" if "distill" in (steps or "distill") else "start only",
    }
    return {**raw, **own}


def printed_name(model: str) -> str:
    """Return a model's name as the paper prints it; others are called as their option is."""
    return _names().get(model, model)


@functools.cache
def _names() -> dict[str, str]:
    with NAMES.open(newline="", encoding="utf-8") as opened:
        return {row["model"]: row["printed"] for row in csv.DictReader(opened)}
