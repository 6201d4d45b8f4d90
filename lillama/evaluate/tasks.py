"""Tasks of the evaluation harness, their data from the Hub or from a folder of JSON Lines.

A folder holds one folder a task, named like the task or like the folder that the harness keeps it in
(``truthfulqa`` for ``truthfulqa_mc2``), and in it a file a split: ``test.jsonl``, ``validation.jsonl``, ...
The harness is told of it by overlays: YAML files that include its own and say where the data lie.
"""

import difflib
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lillama.config import ZeroShotConfig
from lillama.core.cache import Cache, default_root
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
EXAMPLES = ("fewshot_split", "training_split", "validation_split", "test_split")  # where examples come from, in order
KEY, DIR = "evaluate.zero_shot", "evaluate.tasks_dir"
_managers: list[Any] = []
LOCAL = f"give {DIR}=FOLDER with its data as JSON Lines (python -m lillama prefetch fills one)"


@dataclass(frozen=True, slots=True)
class Tasks:
    """Requested tasks: ``named`` are the tasks and groups that get a score, ``leaves`` all that are run."""

    named: tuple[str, ...]
    leaves: Mapping[str, Any]
    groups: Mapping[str, Any]

    def identity(self, name: str, *, examples: bool) -> str:
        """Identify a leaf's questions (and its examples), wherever they were read."""
        task = self.leaves[name]
        parts = [task.eval_docs, *([task.fewshot_docs()] if examples else [])]
        return digest([[json.dumps(row, sort_keys=True, default=str) for row in part or []] for part in parts])


def harness_tasks(config: ZeroShotConfig, tasks_dir: str | None, cache: Cache | None = None) -> Tasks:
    """Return the configured tasks, their data read.

    :param tasks_dir: the folder with their data; None for the Hub.
    :param cache: where the harness's index of its tasks is kept between runs.
    :raises ConfigError: for an unknown task or metric, or data that are not there or cannot be read.
    """
    named: list[str] = []
    leaves: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    with quiet_harness():
        manager = task_manager(cache)
        for name in config.tasks:
            check_name(manager, name)
        for name in config.metrics:
            check_name(manager, name, "metrics")
        local = None if tasks_dir is None else LocalData(Path(tasks_dir).expanduser())
        asked = dict.fromkeys(leaf for name in config.tasks for leaf in leaves_of(manager.task_index, name))
        if local is not None:
            for leaf in asked:
                local.check(leaf, manager.task_index[leaf], config.num_fewshot)
        with overlaid(manager.task_index, local, asked):
            for name in config.tasks:
                found = load_task(manager, name)
                named += [name] if name in found["groups"] else list(found["tasks"])
                leaves |= found["tasks"]
                groups |= found["groups"]
    for name, metric in config.metrics.items():
        members = groups[name].get_all_tasks() if name in groups else [leaves[name]] if name in leaves else []
        known = sorted({own for member in members for own in metrics_of(member)}) if members else [metric]
        if metric not in known:
            raise ConfigError(f"{KEY}.metrics.{name}={metric}: the task has {', '.join(known)}")
    return Tasks(tuple(dict.fromkeys(named)), leaves, groups)


def metrics_of(task: Any) -> list[str]:
    """Return the names of a task's metrics."""
    return [metric["metric"] for metric in task.config.metric_list or []]


def task_manager(cache: Cache | None = None) -> Any:
    """Return the harness's index of its tasks, read once a process; in the cache the next finds it.

    :param cache: else the one of a run that names none.
    :raises ConfigError: where the harness is not installed.
    """
    if not _managers:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise ConfigError("stages: zero_shot needs the package lm-eval (pip install lm-eval)") from None
        try:
            from lillama.evaluate.harness_index import kept_manager
        except ImportError:  # a harness whose index has another shape
            _managers.append(TaskManager())
        else:
            _managers.append(kept_manager(cache or Cache(default_root().expanduser())))
    return _managers[0]


@contextmanager
def quiet_harness() -> Iterator[None]:
    """The harness without the lines and bars of every step of its own; the requests to a model keep theirs."""
    import datasets
    import lm_eval.api.task as questions

    loggers = {name: logging.getLogger(name) for name in ("lm_eval", "httpx", "datasets")}
    before = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    bar, questions.tqdm = questions.tqdm, functools.partial(questions.tqdm, disable=True)  # it has no switch
    try:
        yield
    finally:
        questions.tqdm = bar
        datasets.enable_progress_bars()
        for name, logger in loggers.items():
            logger.setLevel(before[name])


def check_name(manager: Any, name: str, key: str = "tasks") -> None:
    """Raise a :class:`ConfigError` for a name that the harness does not know, with the nearest that it does."""
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, sorted(manager.task_index), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"{KEY}.{key}={name}: the harness knows no such task, group or tag{hint}")


def leaves_of(index: Mapping[str, Any], name: str) -> list[str]:
    """Return the tasks that a task, group or tag stands for, by name; no data are read."""
    entry = index[name]
    if entry.kind.name in ("TASK", "PY_TASK"):
        return [name]
    members = sorted(entry.tags) if entry.cfg is None else entry.cfg.get("task") or []
    names = (member if isinstance(member, str) else member.get("task") or member.get("group") for member in members)
    return [leaf for member in names if member in index for leaf in leaves_of(index, member)]


@dataclass(frozen=True, slots=True)
class LocalData:
    """A folder with the data of tasks."""

    folder: Path

    def place(self, name: str, entry: Any) -> Path | None:
        """Return the folder of one task's data, if there is one."""
        near = entry.yaml_path.parent.name if entry.yaml_path else name
        places = (self.folder / candidate for candidate in (name, near))
        return next((place for place in places if place.is_dir()), None)

    def check(self, name: str, entry: Any, num_fewshot: int | None) -> None:
        """Raise where the folder lacks what a task is scored on, or its examples: another split gives other scores.

        :raises ConfigError: and also where there is no such folder.
        """
        if not self.folder.is_dir():
            raise ConfigError(f"{DIR}={self.folder}: no such folder")
        cfg, place = entry.cfg, self.place(name, entry)
        needed = [cfg.get("test_split") or cfg.get("validation_split")]
        if shots_of(cfg, num_fewshot):
            needed.append(next((cfg[key] for key in EXAMPLES if cfg.get(key)), None))
        for split in dict.fromkeys(needed):
            if place is None or not (place / f"{split}.jsonl").is_file():
                where = place or self.folder / name
                raise ConfigError(f"{DIR}={self.folder}: {name} needs {where.name}/{split}.jsonl, which is not there")

    def overlay(self, name: str, entry: Any) -> dict[str, Any] | None:
        """Make the harness's settings of a task whose data lie here; None of any other."""
        place = self.place(name, entry)
        if place is None or "dataset_path" not in (entry.cfg or {}):
            return None
        splits = {key: entry.cfg.get(key) for key in SPLITS}
        files = {split: place / f"{split}.jsonl" for split in splits.values() if split}
        there = {split: str(file.resolve()) for split, file in files.items() if file.is_file()}
        return {
            "include": str(entry.yaml_path),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": there},
            **{key: split if split in there else None for key, split in splits.items()},
        }


def shots_of(cfg: Mapping[str, Any], num_fewshot: int | None) -> int:
    """Count the examples that a task is given; one whose own number is 0 keeps it, as in the harness."""
    own = cfg.get("num_fewshot")
    return own or 0 if own == 0 or num_fewshot is None else num_fewshot


@contextmanager
def overlaid(index: dict[str, Any], local: LocalData | None, names: Iterable[str]) -> Iterator[None]:
    """The index with those of the named tasks whose data lie in a folder; afterwards it is as it was."""
    if local is None:
        yield
        return
    from lm_eval.tasks import TaskManager

    found = {name: local.overlay(name, index[name]) for name in names}
    overlays = {name: overlay for name, overlay in found.items() if overlay is not None}
    with TemporaryDirectory() as folder:
        for name, overlay in overlays.items():  # JSON is YAML too
            (Path(folder) / f"{name}.yaml").write_text(json.dumps(overlay), encoding="utf-8")
        entries = TaskManager(include_path=folder, include_defaults=False).task_index
        before = {name: index[name] for name in overlays}
        index.update({name: entries[name] for name in overlays})
        try:
            yield
        finally:
            index.update(before)


def load_task(manager: Any, name: str) -> Any:
    """One name, its data read: the harness's ``tasks`` and ``groups`` by name.

    :raises ConfigError: where the data cannot be read.
    """
    try:
        return manager.load([name])
    except Exception as error:  # noqa: BLE001 - whatever the harness or the Hub says, the user gets it in one line
        raise ConfigError(f"{KEY}.tasks={name}: {_why(error)}") from None


def _why(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if "scripts are no longer supported" in reason:
        return f"its data on the Hub come with a loading script, which datasets no longer runs; {LOCAL}"
    return f"its data cannot be loaded ({type(error).__name__}: {reason}); without the Hub, {LOCAL}"
