"""Speed and memory of inference: a row a variant, a column a length (the shape of the paper's Table 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from lillama.core.numbers import ABSENT, gibibytes, or_absent
from lillama.core.spread import shown
from lillama.report.tables.markdown import table

RATIOS = "ratios"
FORWARD, PREFILL, DECODE = "forward", "prefill", "decode"
RATIO_ROW = "compressed / dense"


def throughput_table(measured: Mapping[str, Any]) -> str:
    """Tokens a second, the median of the rounds with lowest and highest in brackets; ratios are of the same round.

    Memory is the peak at the longest length (the largest number of prompts) that most variants have run. A table for
    forward passes, one for generation, then what else is to be said.
    """
    figures = {role: found for role, found in measured.items() if role != RATIOS}
    ratios = measured.get(RATIOS, {})
    first: Mapping[str, Any] = next(iter(figures.values()), {})
    parts = []
    if _keys(figures, FORWARD):
        parts += [f"a forward pass of {first['batch_size']} prompts{_where(figures)}", _forward(figures, ratios)]
    if _keys(figures, DECODE):
        said = f"generation of {first['new_tokens']} tokens after {first['prompt']}{_where(figures)}"
        parts += [said, _generation(figures, ratios)]
    notes = dict.fromkeys(f"{role}: {note}" for role, found in figures.items() for note in found.get("notes", []))
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


def _where(figures: Mapping[str, Any]) -> str:
    known = dict.fromkeys(f"{found['dtype']} on {found['machine']}" for found in figures.values() if "dtype" in found)
    counts = dict.fromkeys(str(found["rounds"]) for found in figures.values())
    return f", {' and '.join(known) or 'nowhere'}; tokens a second, rounds: {', '.join(counts)}"


def _forward(figures: Mapping[str, Any], ratios: Mapping[str, Any]) -> str:
    lengths = _keys(figures, FORWARD)
    widest = _widest(figures, FORWARD, lengths)
    header = ["", "weights", f"memory at {widest}", *(f"s={length}" for length in lengths)]
    rows = []
    for role, found in figures.items():
        memory, weights = _memory(found[FORWARD].get(widest)), found.get("memory", {}).get("weights")
        weights_shown = gibibytes(weights) if weights is not None else "OOM"
        rows.append([role, weights_shown, memory, *(_speed(found[FORWARD].get(length)) for length in lengths)])
    if ratios:
        own = ratios.get(FORWARD, {})
        share = or_absent(ratios.get("weights")), or_absent(own.get(widest, {}).get("memory"))
        rows.append([RATIO_ROW, *share, *(_ratio(own.get(length)) for length in lengths)])
    return table(header, rows)


def _generation(figures: Mapping[str, Any], ratios: Mapping[str, Any]) -> str:
    sizes = _keys(figures, DECODE)
    widest = _widest(figures, DECODE, sizes)
    columns = [(part, size) for part in (PREFILL, DECODE) for size in sizes]
    header = ["", f"memory at {widest}", *(f"{part}, {size} at once" for part, size in columns)]
    rows = []
    for role, found in figures.items():
        cells = [_speed(found[part].get(size)) for part, size in columns]
        rows.append([role, _memory(found[DECODE].get(widest)), *cells])
    if ratios:
        cells = [_ratio(ratios.get(part, {}).get(size)) for part, size in columns]
        rows.append([RATIO_ROW, or_absent(ratios.get(DECODE, {}).get(widest, {}).get("memory")), *cells])
    return table(header, rows)


def _keys(figures: Mapping[str, Any], part: str) -> list[str]:
    return sorted({key for found in figures.values() for key in found.get(part, {})}, key=int)


def _widest(figures: Mapping[str, Any], part: str, keys: Sequence[str]) -> str:
    """Return the largest case that as many variants as possible have run."""
    return max(
        keys, key=lambda key: (sum(isinstance(found[part].get(key), dict) for found in figures.values()), int(key))
    )


def _speed(case: Any) -> str:
    return shown(case["tokens_per_second"]) if isinstance(case, Mapping) else str(case or ABSENT)


def _memory(case: Any) -> str:
    if isinstance(case, Mapping):
        return ABSENT if case["memory"] is None else gibibytes(case["memory"])
    return str(case or ABSENT)


def _ratio(case: Mapping[str, Any] | None) -> str:
    return ABSENT if case is None else shown(case["speed"])
