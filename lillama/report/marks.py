"""Lines and bars of a figure: a gap where nothing was measured, with the word that says why."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lillama.report.series import Point, Series

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#333333")  # colour-blind eyes tell them
MARKS = "osD^vPX"
MILLION = 1e6
TICKS = 5
SPAN = 0.8  # of the room of a row that its bars take
MANY = 3  # names of rows that stand upright; more are turned


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a mark for every label, the same in all panels."""
    return {
        label: {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)]}
        for place, label in enumerate(dict.fromkeys(labels))
    }


def draw_lines(
    axes: Any, lines: Sequence[tuple[str, Series]], looks: Mapping[str, dict[str, Any]], *, x: str, tokens: bool
) -> None:
    """A full line a series through its points, broken at gaps, and the paper's points dashed in the same colour."""
    scale = MILLION if tokens else 1.0
    for label, series in lines:
        style = looks[label]
        if series.points and not any(one.measured for one in series.points):
            axes.plot([], [], label=f"{label}: {series.points[0].gap}", **style)  # no word at every point
        elif series.points:
            places, values = [one.x / scale for one in series.points], [one.value for one in series.points]
            axes.errorbar(places, values, yerr=_errors(series.points), label=label, capsize=3, **style)
            _tell_gaps(axes, series.points, scale=scale)
        if series.paper:
            places, values = [x / scale for x, _ in series.paper], [value for _, value in series.paper]
            thin = {"alpha": 0.75, "markersize": 4, "fillstyle": "none"}
            axes.plot(places, values, "--", label=f"{label}, the paper", **thin, **style)
    axes.locator_params(axis="x", nbins=TICKS)
    axes.set_xlabel("seen tokens (millions)" if tokens else x)


def draw_bars(
    axes: Any, lines: Sequence[tuple[str, Series]], looks: Mapping[str, dict[str, Any]], names: Sequence[str]
) -> None:
    """A full bar a series at every row, and a dashed outline beside it where the paper prints a figure."""
    room = SPAN / sum(1 + bool(series.paper) for _, series in lines)
    left = -SPAN / 2 + room / 2
    for label, series in lines:
        colour = looks[label]["color"]
        _full_bars(axes, label, series.points, colour=colour, room=room, shift=left)
        left += room
        if series.paper:
            places, heights = [x + left for x, _ in series.paper], [value for _, value in series.paper]
            outline = {"facecolor": "none", "edgecolor": colour, "linestyle": "--"}
            axes.bar(places, heights, room, label=f"{label}, the paper", **outline)
            left += room
    turned: dict[str, Any] = {"rotation": 20, "ha": "right"} if len(names) > MANY else {}
    axes.set_xticks(range(len(names)), names, **turned)


def _full_bars(axes: Any, label: str, points: Sequence[Point], *, colour: str, room: float, shift: float) -> None:
    there = [one for one in points if one.measured]
    places, heights = [one.x + shift for one in there], [one.value for one in there]
    axes.bar(places, heights, room, label=label, color=colour, yerr=_errors(there), capsize=3)
    _tell_gaps(axes, points, shift=shift)


def _errors(points: Sequence[Point]) -> list[list[float]] | None:
    errors = [[one.down for one in points], [one.up for one in points]]
    return errors if any(map(any, errors)) else None


def _tell_gaps(axes: Any, points: Sequence[Point], *, scale: float = 1.0, shift: float = 0.0) -> None:
    """A word at the foot of the axes, where the bar or the point would be."""
    foot, paper = axes.get_xaxis_transform(), {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
    for one in points:
        if one.gap:
            where = one.x / scale + shift
            axes.text(where, 0.02, one.gap, rotation=90, ha="center", fontsize=7, transform=foot, bbox=paper)
