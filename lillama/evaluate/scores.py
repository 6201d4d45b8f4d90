"""Scores of tasks and groups, out of what the evaluation harness gives; their mean, and what is left of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lillama.config import ZeroShotConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate.tasks import KEY, Tasks

PREFERRED = ("acc_norm", "acc")
Results = dict[str, Any]  # of one task, as the harness gives them: "acc,none", "acc_stderr,none", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One task's score: which metric, with its standard error (None where the harness has none for it).

    ``documents`` is how many questions were asked, ``seconds`` how long it took when it was scored, ``metrics`` all
    that the harness said.
    """

    score: float
    stderr: float | None
    metric: str
    version: Any
    documents: int
    shots: int
    seconds: float
    metrics: Mapping[str, float]


def scores_of(tasks: Tasks, config: ZeroShotConfig, found: Mapping[str, Results]) -> dict[str, Any]:
    """Return the score of every asked task, and of every group whose tasks are all done."""
    scores = {}
    for name in tasks.named:
        if name in found:
            task = tasks.leaves[name]
            scores[name] = _score(name, task.VERSION, found[name], config)
        elif name in tasks.groups:
            group = tasks.groups[name]
            members = [task.task_name for task in group.get_all_tasks()]
            if all(member in found for member in members):
                scores[name] = _group_score(name, group, {member: found[member] for member in members}, config)
    return {name: asdict(score) for name, score in scores.items()}


def _group_score(name: str, group: Any, members: Mapping[str, Results], config: ZeroShotConfig) -> Score:
    """Return a group's own score, by the harness's own aggregation."""
    own = group.aggregate(
        {member: {**results, "sample_len": results["documents"]} for member, results in members.items()}
    )
    known = {key: value for key, value in own.items() if isinstance(value, int | float)}
    sums = {key: sum(results[key] for results in members.values()) for key in ("documents", "seconds")}
    shots = max(results["shots"] for results in members.values())
    return _score(name, group.version, {**known, **sums, "shots": shots}, config)


def _score(name: str, version_: Any, results: Results, config: ZeroShotConfig) -> Score:
    metrics = {key: value for key, value in results.items() if "," in key}
    values = {key: value for key, value in metrics.items() if "_stderr," not in key}
    key = _chosen(name, list(values), config.metrics.get(name))
    if not math.isfinite(values[key]):
        raise DivergedError(f"zero-shot: {name} has a score of {values[key]}")
    metric, _, kind = key.partition(",")
    return Score(
        score=values[key],
        stderr=metrics.get(f"{metric}_stderr,{kind}"),
        metric=metric,
        version=version_,
        documents=results["documents"],
        shots=results["shots"],
        seconds=results["seconds"],
        metrics=metrics,
    )


def _chosen(name: str, keys: list[str], metric: str | None) -> str:
    """Return the key of a task's score: the metric that is asked for, or the best known of those there are."""
    for wanted in (metric,) if metric else (*PREFERRED, keys[0].partition(",")[0]):
        found = next((key for key in keys if key.partition(",")[0] == wanted), None)
        if found is not None:
            return found
    raise ConfigError(f"{KEY}.metrics.{name}={metric}: the harness gave {', '.join(keys)}")


def mean_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the plain mean of the tasks' scores, as the paper's tables have it, and the standard error of it."""
    errors = [score["stderr"] for score in scores.values()]
    known = [error for error in errors if error is not None]
    count = len(errors)
    return {
        "score": sum(score["score"] for score in scores.values()) / count,
        "stderr": math.sqrt(sum(error**2 for error in known)) / count if len(known) == count else None,
        "tasks": count,
    }


def recovery(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> dict[str, float]:
    """Compressed over dense by task, and of the means; of tasks that the dense model scores 0 there is none."""
    pairs = {
        name: (compressed["tasks"][name], score)
        for name, score in dense["tasks"].items()
        if name in compressed["tasks"]
    }
    pairs["mean"] = (compressed["mean"], dense["mean"])
    return {name: own["score"] / base["score"] for name, (own, base) in pairs.items() if base["score"]}
