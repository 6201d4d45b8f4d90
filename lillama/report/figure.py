"""The figure of a table as PNG: what was measured in full lines, what the paper prints dashed beside it."""

import io
from collections.abc import Sequence

from lillama.report.entries import Table
from lillama.report.marks import draw_bars, draw_lines, styles
from lillama.report.series import Series, along_x, by_row, row_names
from lillama.report.spec import BARS, CURVE, LINE, FigureSpec, figure_spec

BESIDE = 3  # panels in a line
OUTSIDE = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # bars leave no corner free
Labelled = tuple[str, Series]


def figure_png(table: Table) -> bytes | None:
    """Return the picture that a table's ``figure`` asks for; None where it asks for none, or there is nothing to draw.

    :raises ConfigError: for a ``figure`` that asks for what there is not.
    """
    spec = figure_spec(table.name, table.config)
    if spec is None:
        return None
    found = by_row(table, spec) if spec.kind == BARS else along_x(table, spec)
    return _drawn(table, spec, _panels(found, spec)) if any(series.drawn for series in found) else None


def _drawn(table: Table, spec: FigureSpec, panels: dict[str, list[Labelled]]) -> bytes:
    from matplotlib.figure import Figure

    down = -(-len(panels) // BESIDE)
    beside = -(-len(panels) // down)
    figure = Figure(figsize=(max(6.8, 4.4 * beside), 0.4 + 3.6 * down), layout="constrained")
    looks = styles(label for lines in panels.values() for label, _ in lines)
    places = list(figure.subplots(down, beside, squeeze=False).flat)
    for axes, (title, lines) in zip(places, panels.items(), strict=False):
        if spec.kind == BARS:
            draw_bars(axes, lines, looks, row_names(table))
        else:
            draw_lines(axes, lines, looks, x=str(spec.x), tokens=spec.kind == CURVE)
        axes.set(title=title, ylabel=spec.y or ("perplexity" if spec.kind == CURVE else ""))
        axes.set_yscale("log" if spec.log else "linear")
        axes.grid(visible=True, axis="y", alpha=0.25)
        axes.legend(fontsize="small", **(OUTSIDE if spec.kind == BARS else {}))
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(f"{table.config.title} (scale: {table.scale})", fontsize="medium")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _panels(found: Sequence[Series], spec: FigureSpec) -> dict[str, list[Labelled]]:
    """By the panel's title its series with their labels: along a number a panel a column, else a panel a group."""
    panels: dict[str, list[Labelled]] = {}
    for series in found:
        title, label = (series.column, series.group) if spec.kind == LINE else (series.group, series.column)
        panels.setdefault(title, []).append((label or series.column, series))
    return panels
