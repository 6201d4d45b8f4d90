"""Generated texts, one beneath the other for a terminal or side by side for a page, and how much they repeat."""

from collections.abc import Iterator, Mapping
from typing import Any

from lillama.tables.markdown import table

MISSING = "MISSING"
HEADER = ("model", "repetition", "distinct-1", "distinct-2", "distinct-3", "tokens", "ended")
METRICS = ("repetition", "distinct_1", "distinct_2", "distinct_3")
ESCAPED = "\\|<"  # the backslash first: what would end a cell, or be taken for HTML
Figures = Mapping[str, Any]


def samples_table(measured: Mapping[str, Any]) -> str:
    """Of every prompt a block with each model's texts, a line each; then a row of metrics a model."""
    blocks = [_block(prompt, measured) for prompt in _prompts(measured)]
    return "\n\n".join([*blocks, _metrics(measured)])


def samples_page(columns: Mapping[str, Figures]) -> str:
    """Of every prompt a table with a column of texts for each label ("dense", "20%", "40%"), and a row a seed.

    At last a table of metrics, a row a label. A text that a set does not have is MISSING.
    """
    blocks = [f"**{_cell(prompt)}**\n\n{_beside(prompt, columns)}" for prompt in _prompts(columns)]
    return "\n\n".join([*blocks, _metrics(columns)])


def _block(prompt: str, measured: Mapping[str, Figures]) -> str:
    several = len(_seeds(prompt, measured)) > 1
    lines = [
        f"- {role}{_numbered(text['seed']) if several else ''}: {_cell(text['text'])}"
        for role, figures in measured.items()
        for text in _of(prompt, figures)
    ]
    return "\n".join([f"**{_cell(prompt)}**", "", *lines])


def _numbered(seed: int) -> str:
    return f" (seed {seed})"


def _beside(prompt: str, columns: Mapping[str, Figures]) -> str:
    rows = []
    for seed in _seeds(prompt, columns):
        found = [
            next((text["text"] for text in _of(prompt, figures) if text["seed"] == seed), None)
            for figures in columns.values()
        ]
        rows.append([str(seed), *(MISSING if text is None else _cell(text) for text in found)])
    return table(["seed", *map(_cell, columns)], rows)


def _metrics(measured: Mapping[str, Figures]) -> str:
    return table(HEADER, [_row(label, figures["mean"]) for label, figures in measured.items()])


def _row(label: str, mean: Mapping[str, float | None]) -> list[str]:
    rates = ["-" if mean[name] is None else f"{mean[name]:.3f}" for name in METRICS]
    return [_cell(label), *rates, f"{mean['tokens']:.1f}", f"{mean['ended']:.0%}"]


def _prompts(measured: Mapping[str, Figures]) -> list[str]:
    return list(dict.fromkeys(text["prompt"] for figures in measured.values() for text in figures["texts"]))


def _seeds(prompt: str, measured: Mapping[str, Figures]) -> list[int]:
    return list(dict.fromkeys(text["seed"] for figures in measured.values() for text in _of(prompt, figures)))


def _of(prompt: str, figures: Figures) -> Iterator[Mapping[str, Any]]:
    return (text for text in figures["texts"] if text["prompt"] == prompt)


def _cell(text: str) -> str:
    """A text in one line, with nothing in it that markdown would take for a table's border or for HTML."""
    line = " ".join(text.splitlines())
    for mark in ESCAPED:
        line = line.replace(mark, f"\\{mark}")
    return line.strip()
