"""Stable ranks: a row a kind of matrix, its mean over the blocks, as the paper's Figure 6 has it."""

from collections.abc import Mapping
from typing import Any

from lillama.core.numbers import or_absent
from lillama.report.tables.markdown import table

COLUMNS = {"weight": "weight", "outputs": "outputs", "outputs_centred": "outputs, centred"}


def stable_rank_table(measured: Mapping[str, Any]) -> str:
    """Three columns a model: of the weights, of what they put out, and of that without its mean."""
    kinds = dict.fromkeys(kind for found in measured.values() for kind in found["mean"])
    header = ["", *(f"{role}: {column}" for role in measured for column in COLUMNS.values())]
    rows = [
        [kind, *(_shown(found["mean"].get(kind, {}).get(key)) for found in measured.values() for key in COLUMNS)]
        for kind in kinds
    ]
    tokens = ", ".join(f"{role} {found['tokens']:,}" for role, found in measured.items())
    return f"{table(header, rows)}\n\n- tokens: {tokens}"


def _shown(value: float | None) -> str:
    return or_absent(value, "{:,.1f}".format)
