"""Perplexity by kind of text: a row a text, a column a model."""

from collections.abc import Mapping
from typing import Any

from lillama.core.numbers import two_decimals
from lillama.core.results import MISSING
from lillama.report.tables.markdown import table


def domains_table(measured: Mapping[str, Any]) -> str:
    """Perplexities, in brackets bits per byte, by which models with other tokenizers can be compared."""
    names = dict.fromkeys(name for found in measured.values() for name in found)
    rows = [[name, *(_shown(found.get(name)) for found in measured.values())] for name in names]
    return table(["text", *measured], rows)


def _shown(found: Mapping[str, Any] | None) -> str:
    return MISSING if found is None else f"{two_decimals(found['perplexity'])} ({found['bits_per_byte']:.3f})"
