"""Results of runs that never were, as ``results.json`` holds them."""

from pathlib import Path

from lillama.core.results import RunResult, write_json

TASKS = (
    "truthfulqa_mc2",
    "social_iqa",
    "logiqa",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "boolq",
    "piqa",
    "openbookqa",
)


def score(value: float) -> dict[str, float]:
    return {"score": value, "stderr": 0.0123}


def zero_shot(value: float) -> dict[str, object]:
    return {"tasks": {task: score(value) for task in TASKS}, "mean": score(value)}


def texts(*said: str) -> dict[str, object]:
    mean = {"tokens": 8, "ended": 0.0, "repetition": 0.1, "distinct_1": 1.0, "distinct_2": None, "distinct_3": None}
    return {"texts": [{"prompt": "Rain", "seed": seed, "text": text} for seed, text in enumerate(said)], "mean": mean}


def finished(
    overrides: list[str], *, status: str = "done", started: str = "2025-01-02T03:04:05+0000", **figures
) -> dict:
    provenance = {
        "started": started,
        "git": {"revision": "0123456789abcdef", "dirty": False},
        "hardware": {"gpu": None, "threads": 2},
    }
    given = {"fingerprint": "f" * 8, "name": "n", "settings": {}, "provenance": provenance}
    return RunResult(status=status, overrides=overrides, **given, **figures).as_dict()


def write_cell(outputs: Path, sweep: str, overrides: list[str], **figures) -> None:
    """A cell of a sweep (``table11_ratios/small``) in the folder of outputs."""
    folder = outputs / sweep / "_".join(overrides).replace("/", "_")
    folder.mkdir(parents=True)
    name, _, scale = sweep.partition("/")
    write_json(folder / "results.json", finished([f"experiments={scale}/{name}", *overrides], **figures))
