"""``bench.png``: what one measurement found, in three panels, or the cells of a sweep."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lillama.core.numbers import GIBI

TERA = 1e12


def draw(found: dict[str, Any], file: Path, *, title: str) -> None:
    """Seconds a batch with their spread, operations beside those needed, memory; as far as each was measured.

    :param found: what :func:`lillama.bench.stage.bench` gives.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    times, work, memory = figure.subplots(1, 3)
    _times(times, found["seconds"], found["efficiency"]["median"])
    counted = {key: found["flops"][key] / TERA for key in ("recorded", "needed") if key in found["flops"]}
    _bars(work, counted, "operations a batch (TFLOP)")
    bytes_ = {key.replace("_", " "): value / GIBI for key, value in found["memory"].items() if value is not None}
    _bars(memory, bytes_, "memory (GiB)")
    where = found["gpu"] or "CPU, not measured on a GPU"
    figure.suptitle(f"{title}, {found['schedule']}, {found['batch']['tokens']:,} tokens a batch ({where})")
    figure.savefig(file, dpi=120)


def _times(axes: Any, seconds: dict[str, dict[str, float]], efficiency: float) -> None:
    names = list(seconds)
    medians = [seconds[name]["median"] for name in names]
    low = [seconds[name]["median"] - seconds[name]["lowest"] for name in names]
    high = [seconds[name]["highest"] - seconds[name]["median"] for name in names]
    axes.bar(names, medians, yerr=[low, high], capsize=4)
    axes.set(title=f"seconds a batch; efficiency {efficiency:.2f}", ylabel="seconds")


def _bars(axes: Any, values: dict[str, float], title: str) -> None:
    axes.bar(list(values), list(values.values()))
    axes.set(title=title)
    axes.tick_params(axis="x", labelrotation=20)


def draw_sweep(labels: Sequence[str], results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel a quantity, a bar a cell: only what was measured; a cell without a figure has no bar."""
    from matplotlib.figure import Figure

    panels = {title: [get(result) for result in results] for title, get in SWEEP.items()}
    panels = {title: values for title, values in panels.items() if any(value is not None for value in values)}
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 1.6 + 0.32 * len(labels)), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.barh(range(len(labels)), [value or 0.0 for value in values])
        axes.set_yticks(range(len(labels)), labels)
        axes.set(title=title)
        axes.invert_yaxis() if axes is figure.axes[0] else None
    figure.savefig(file, dpi=120)


def _bench(result: Mapping[str, Any], *path: str) -> Any:
    found: Any = result.get("bench") if result.get("status") == "done" else None
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _gibi(size: float | None) -> float | None:
    return None if size is None else size / GIBI


def _stages(result: Mapping[str, Any]) -> float | None:
    done = result.get("status") == "done" and not result.get("bench")
    return sum(result["seconds"].values()) if done else None


SWEEP: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "efficiency": lambda result: _bench(result, "efficiency", "median"),
    "tokens a second": lambda result: _bench(result, "tokens_per_second", "engine", "median"),
    "seconds a batch": lambda result: _bench(result, "seconds", "engine", "median"),
    "host peak (GiB)": lambda result: _gibi(_bench(result, "memory", "peak_host")),
    "device peak (GiB)": lambda result: _gibi(_bench(result, "memory", "peak_device")),
    "seconds of a cell": _stages,
}
