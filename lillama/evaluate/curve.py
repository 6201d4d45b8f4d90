"""The perplexity curve of a run: points in memory, ``curve.csv`` after every point, ``curve.png`` at the end."""

import csv
from collections.abc import Callable
from pathlib import Path

COLUMNS = ("tokens", "perplexity")


class Curve:
    """Perplexity against seen tokens; every point is on disk as soon as it is measured."""

    def __init__(self, folder: Path, measure: Callable[[], float], every: int) -> None:
        self.folder = folder
        self.measure = measure
        self.every = every
        self.points: list[tuple[int, float]] = []

    def add(self, tokens: int) -> float:
        """Measure and record the point at this many seen tokens."""
        value = self.measure()
        self.points.append((tokens, value))
        self._write()
        return value

    def due(self, tokens: int) -> bool:
        """Whether another ``every`` tokens have been seen since the last point (never where ``every`` is 0)."""
        last = self.points[-1][0] if self.points else 0
        return self.every > 0 and tokens // self.every > last // self.every

    def _write(self) -> None:
        file = self.folder / "curve.csv"
        temporary = file.with_suffix(".partial")
        with temporary.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS)
            writer.writerows(self.points)
        temporary.replace(file)

    def draw(self, dense: float, title: str) -> None:
        """Write ``curve.png``; the dense model's perplexity is a dashed line."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        tokens, values = zip(*self.points, strict=True)
        axes.plot(tokens, values, marker="o", label="student")
        axes.axhline(dense, linestyle="--", color="grey", label=f"dense ({dense:.2f})")
        axes.set(xlabel="seen tokens", ylabel="perplexity", yscale="log", title=title)
        axes.legend()
        axes.grid(visible=True, which="both", alpha=0.3)
        figure.savefig(self.folder / "curve.png", dpi=120)
