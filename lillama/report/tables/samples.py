"""Generated texts, one beneath the other for a terminal or side by side for a page, and how much they repeat."""

from collections.abc import Iterator, Mapping
from typing import Any

from lillama.core.results import MISSING
from lillama.report.tables.markdown import cell_text, table

HEADER = ("model", "repetition", "distinct-1", "distinct-2", "distinct-3", "tokens", "ended")
METRICS = ("repetition", "distinct_1", "distinct_2", "distinct_3")
Figures = Mapping[str, Any]


def samples_table(measured: Mapping[str, Any]) -> str:
    """Of every prompt a block with each model's texts, a line each; then a row of metrics a model."""
    blocks = [_block(prompt, measured) for prompt in _prompts(measured)]
    return "\n\n".join([*blocks, _metrics(measured)])


def samples_page(columns: Mapping[str, Figures]) -> str:
    """Of every prompt a table with a column of texts for each label ("dense", "20%", "40%"), and a row a seed.

    At last a table of metrics, a row a label. A text that a set does not have is MISSING.
    """
    blocks = [f"**{cell_text(prompt)}**\n\n{_beside(rows, columns)}" for prompt, rows in texts_beside(columns).items()]
    return "\n\n".join([*blocks, _metrics(columns)])


def texts_beside(columns: Mapping[str, Figures]) -> dict[str, dict[int, list[str]]]:
    """By prompt and seed the text of every label in turn, as written; MISSING where a label has none."""
    return {
        prompt: {
            seed: [_text(prompt, seed, figures) for figures in columns.values()] for seed in _seeds(prompt, columns)
        }
        for prompt in _prompts(columns)
    }


def metrics_rows(measured: Mapping[str, Figures]) -> list[list[str]]:
    """Tabulate how much each label repeats, under ``HEADER``; the label as it is."""
    return [_row(label, figures["mean"]) for label, figures in measured.items()]


def _block(prompt: str, measured: Mapping[str, Figures]) -> str:
    several = len(_seeds(prompt, measured)) > 1
    lines = [
        f"- {role}{_numbered(text['seed']) if several else ''}: {cell_text(text['text'])}"
        for role, figures in measured.items()
        for text in _of(prompt, figures)
    ]
    return "\n".join([f"**{cell_text(prompt)}**", "", *lines])


def _numbered(seed: int) -> str:
    return f" (seed {seed})"


def _text(prompt: str, seed: int, figures: Figures) -> str:
    return next((str(text["text"]) for text in _of(prompt, figures) if text["seed"] == seed), MISSING)


def _beside(rows: Mapping[int, list[str]], columns: Mapping[str, Figures]) -> str:
    return table(
        ["seed", *map(cell_text, columns)], [[str(seed), *map(cell_text, texts)] for seed, texts in rows.items()]
    )


def _metrics(measured: Mapping[str, Figures]) -> str:
    return table(HEADER, [[cell_text(label), *rates] for label, *rates in metrics_rows(measured)])


def _row(label: str, mean: Mapping[str, float | None]) -> list[str]:
    rates = ["-" if mean[name] is None else f"{mean[name]:.3f}" for name in METRICS]
    return [label, *rates, f"{mean['tokens']:.1f}", f"{mean['ended']:.0%}"]


def _prompts(measured: Mapping[str, Figures]) -> list[str]:
    return list(dict.fromkeys(text["prompt"] for figures in measured.values() for text in figures["texts"]))


def _seeds(prompt: str, measured: Mapping[str, Figures]) -> list[int]:
    return list(dict.fromkeys(text["seed"] for figures in measured.values() for text in _of(prompt, figures)))


def _of(prompt: str, figures: Figures) -> Iterator[Mapping[str, Any]]:
    return (text for text in figures["texts"] if text["prompt"] == prompt)
