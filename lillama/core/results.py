"""Keep what a run found: ``results.json``, written whole or not at all. Needs no torch."""

import csv
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from lillama.core.half_written import whole

FILE = "results.json"
DENSE, COMPRESSED = "dense", "compressed"  # the roles that measured figures are kept by
MISSING = "MISSING"  # what a table says of a figure that there is not
FIGURES = (
    *("parameters", "reduction", "blocks", "matrices", "perplexity", "bits_per_byte", "loss_rise"),
    *("tokens", "finetune", "seconds", "peak_memory", "measured"),
)


@dataclass(kw_only=True, slots=True)
class RunResult:
    """The figures of one run; a stage that did not run leaves its part empty.

    ``choices`` is the option that was chosen of every group (``strategy: kfac``), where Hydra composed the run.
    ``perplexity`` is that of the dense model, at the ``start`` and the ``end`` of the distillation and of the
    ``finetuned`` model. ``finetune`` holds the fine-tuning's own tokens, steps and seconds, how many parameters learnt,
    its loss and its curve as pairs with the tokens seen.
    ``measured`` holds what the stages after the making found: by stage and role (``dense``, ``compressed``).
    ``loss_rise`` is how much the start raises the loss per token, in nats: ``predicted`` from the moments of
    ``init=kfac``, ``measured`` on the perplexity's text, or without one as the mean over those of ``domains``.
    ``seconds`` is wall time by stage, ``peak_memory`` the highest resident memory of the process during the run and
    ``peak_device_memory`` that of the GPU, both in bytes.
    """

    status: str
    fingerprint: str
    name: str
    overrides: list[str]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    reduction: dict[str, float] = field(default_factory=dict)
    blocks: int = 0
    matrices: int = 0
    perplexity: dict[str, float] = field(default_factory=dict)
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    loss_rise: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    finetune: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    peak_device_memory: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``results.json`` holds them."""
        return asdict(self)

    def figures(self) -> dict[str, Any]:
        """Return the figures alone, flat: ``perplexity.end`` and so on."""
        flat = flatten({key: value for key, value in self.as_dict().items() if key in FIGURES})
        return {key: value for key, value in flat.items() if isinstance(value, int | float)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level of dotted keys.

    >>> flatten({"perplexity": {"dense": 12.5, "end": 15.0}})
    {'perplexity.dense': 12.5, 'perplexity.end': 15.0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_json(file: Path, value: Any) -> None:
    """Write JSON through a temporary file, so that a reader sees the whole of it or the one before.

    :raises ValueError: for a number that is not finite.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV through a temporary file, as :func:`write_json` does."""
    with whole(file) as temporary, temporary.open("w", newline="") as out:
        csv.writer(out).writerows(rows)


def read_json(file: Path) -> Any:
    """Read a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read what a run's folder says, with every key of a :class:`RunResult`, those of an older version with defaults.

    None where there is no result, or a damaged one: a required key is missing, or a value has another type.
    """
    try:
        found = read_json(folder / FILE)
        known = {key: found[key] for key in RunResult.__dataclass_fields__ if key in found}
        result = RunResult(**known).as_dict() | found
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return result if all(isinstance(result[key], kind) for key, kind in _kinds().items()) else None


@functools.cache
def _kinds() -> dict[str, Any]:
    """Return the type of every key's value, as ``isinstance`` takes it."""
    kinds = {field.name: field.type for field in fields(RunResult)}
    return {key: get_origin(kind) if get_origin(kind) in (list, dict) else kind for key, kind in kinds.items()}
