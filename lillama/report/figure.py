"""The figure of a table as PNG: what was measured in full lines, what the paper prints dashed beside it."""

import io
from collections.abc import Sequence

from lillama.report.entries import Table
from lillama.report.marks import draw_bars, draw_lines
from lillama.report.series import Series, along_x, by_row
from lillama.report.spec import BARS, CURVE, LINE, FigureSpec, figure_spec

Labelled = tuple[str, Series]


def figure_png(table: Table) -> bytes | None:
    """The picture that a table's ``figure`` asks for; None where it asks for none, or there is nothing to draw.

    :raises ConfigError: for a ``figure`` that asks for what there is not.
    """
    spec = figure_spec(table.name, table.config)
    if spec is None:
        return None
    found = by_row(table, spec) if spec.kind == BARS else along_x(table, spec)
    return _drawn(table, spec, _panels(found, spec)) if any(series.drawn for series in found) else None


def _drawn(table: Table, spec: FigureSpec, panels: dict[str, list[Labelled]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 4.4 * len(panels)), 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        if spec.kind == BARS:
            draw_bars(axes, lines, [", ".join(filter(None, row)) for row in table.by_row()])
        else:
            draw_lines(axes, lines, x=str(spec.x), tokens=spec.kind == CURVE)
        axes.set(title=title, yscale="log" if spec.log else "linear")
        axes.grid(visible=True, axis="y", alpha=0.25)
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel(spec.y or ("perplexity" if spec.kind == CURVE else ""))
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
