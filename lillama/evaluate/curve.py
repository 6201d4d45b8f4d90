"""A perplexity curve of a run: points in memory, a CSV file after every point, a chart at the end."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lillama.core.results import write_csv

COLUMNS = ("tokens", "perplexity")


class Learning(Protocol):
    """Model that learns: a student, or one that is fine-tuned."""

    def in_place(self) -> AbstractContextManager[nn.Module]:
        """Return the model as it is by now, ready to be measured."""


class Curve:
    """Perplexity against seen tokens; every point is on disk as soon as it is measured.

    :param measure: gives a model's perplexity; None where the run measures none, and the curve then does nothing.
    :param every: how many tokens lie between two points; 0 for the start and the end only.
    :param on_point: told of every new point, (tokens, perplexity).
    :param start: the :meth:`state` of a curve to go on with. :param name: of its files, without their endings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        measure: Callable[[nn.Module], float] | None,
        every: int = 0,
        on_point: Callable[[int, float], None] = lambda tokens, perplexity: None,
        start: Mapping[str, Any] | None = None,
        name: str = "curve",
    ) -> None:
        self.file = folder / f"{name}.csv"
        self.measure = measure
        self.every = every
        self.on_point = on_point
        self.dense: float | None = start["dense"] if start else None
        self.points: list[tuple[int, float]] = [(tokens, value) for tokens, value in start["points"]] if start else []
        if self.points:  # of another run, perhaps
            self._write()

    def add_dense(self, teacher: nn.Module) -> None:
        """Measure the dense model."""
        if self.measure is not None:
            self.dense = self.measure(teacher)

    def add(self, student: Learning, tokens: int) -> None:
        """Measure the point at this many seen tokens, unless it was the last one measured."""
        if self.measure is None or (self.points and self.points[-1][0] == tokens):
            return
        with student.in_place() as compressed:
            self.points.append((tokens, self.measure(compressed)))
        self._write()
        self.on_point(*self.points[-1])

    def _write(self) -> None:
        write_csv(self.file, [COLUMNS, *self.points])

    def add_if_due(self, student: Learning, tokens: int) -> None:
        """Measure a point where at least ``every`` tokens' mark was passed since the last one."""
        last = self.points[-1][0] if self.points else 0
        if self.every > 0 and tokens // self.every > last // self.every:
            self.add(student, tokens)

    def state(self) -> dict[str, Any]:
        """Return the measured points as plain values."""
        return {"dense": self.dense, "points": [list(point) for point in self.points]}

    @property
    def figures(self) -> dict[str, float]:
        """``dense``, ``start`` and ``end``, as far as they were measured."""
        figures = {} if self.dense is None else {"dense": self.dense}
        if self.points:
            figures |= {"start": self.points[0][1], "end": self.points[-1][1]}
        return figures

    def draw(self, title: str) -> None:
        """Write a chart, where there is a curve; the dense model's perplexity, where known, is a dashed line."""
        if not self.points:
            return
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter

        figure = Figure(figsize=(7, 4))
        # Fixed margins and title, plain labels: a layout that measures, and labels in TeX, take twice as long.
        axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "bottom": 0.13, "top": 0.92})
        tokens, values = zip(*self.points, strict=True)
        axes.plot(tokens, values, marker="o", label="student")
        if self.dense is not None:
            axes.axhline(self.dense, linestyle="--", color="grey", label=f"dense ({self.dense:.2f})")
        axes.set(xlabel="seen tokens", ylabel="perplexity", yscale="log")
        axes.set_title(title, y=1.0)
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        axes.legend()
        axes.grid(visible=True, which="both", alpha=0.3)
        figure.savefig(self.file.with_suffix(".png"), dpi=120)
