"""Word error rates: a row a model, as the paper's Table 16, with the speed of transcription."""

from collections.abc import Mapping
from typing import Any

from lillama.core.numbers import with_error
from lillama.core.spread import shown
from lillama.report.tables.markdown import table

HEADER = ("model", "WER %", "substituted", "deleted", "inserted", "words", "clips", "tokens/s", "real time factor")
EDITS = ("substitutions", "deletions", "insertions", "words", "clips")


def wer_table(measured: Mapping[str, Any]) -> str:
    """Rates in percent with their standard errors, speeds of generation, and below what is to be said of them.

    The real time factor is seconds of sound per second.
    """
    lines = [table(HEADER, [_row(role, figures) for role, figures in measured.items()])]
    lines += [f"- {note}" for note in _notes(measured)]
    return "\n\n".join([lines[0], *(["\n".join(lines[1:])] if lines[1:] else [])])


def _row(role: str, figures: Mapping[str, Any]) -> list[str]:
    error = None if figures["stderr"] is None else 100 * figures["stderr"]
    counts = [f"{figures[name]:,}" for name in EDITS]
    speeds = [shown(float(figures[name])) for name in ("tokens_per_second", "real_time_factor")]
    return [role, with_error(100 * figures["wer"], error), *counts, *speeds]


def _notes(measured: Mapping[str, Any]) -> list[str]:
    """Note what every model's figures say, once, and what only some say, with their names."""
    said: dict[str, list[str]] = {}
    for role, figures in measured.items():
        for note in _told(figures):
            said.setdefault(note, []).append(role)
    return [note if len(roles) == len(measured) else f"{', '.join(roles)}: {note}" for note, roles in said.items()]


def _told(figures: Mapping[str, Any]) -> list[str]:
    told = [
        f"words after Whisper's {figures['normalizer']} normaliser; ± is one standard error, by bootstrap over clips"
    ]
    if figures["empty"]:
        told.append(f"{figures['empty']} clips were left out: their references hold no word")
    return [*told, *figures["notes"]]
