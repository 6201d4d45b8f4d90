"""The evaluation harness's index of its tasks, kept in the cache: to read its 14,000 files takes 10 seconds."""

import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from lillama.core.cache import Cache
from lillama.core.provenance import digest

KIND = "harness"
FORMAT = 1
ROOT = Path(lm_eval.tasks.__file__).parent


def kept_manager(cache: Cache) -> TaskManager:
    """The harness's manager of its own tasks; of two processes at once one reads the files and the other waits."""
    key = digest([FORMAT, importlib.metadata.version("lm-eval"), str(ROOT), sorted(_files(str(ROOT)))])
    with cache.lock(key, "the index of the harness's tasks"):
        index = cache.read(KIND, key, _read)
        if index is None:
            manager = TaskManager()
            content = _written(manager.task_index)
            if content is not None:
                cache.write(KIND, key, content)
            return manager
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(index)
    return manager


def _files(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the configurations of tasks, and when each was changed."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(entry.path)
        elif entry.name.endswith(".yaml"):
            yield entry.path, entry.stat().st_mtime_ns


def _written(index: Mapping[str, Entry]) -> bytes | None:
    """Return the index as JSON; None where that would not give the same index again."""
    rows = [
        [entry.name, entry.kind.name, entry.yaml_path and str(entry.yaml_path), entry.cfg, sorted(entry.tags)]
        for entry in index.values()
    ]
    try:
        content = json.dumps(rows)
    except TypeError:  # a date
        return None
    return content.encode() if json.loads(content) == rows else None


def _read(file: Path) -> dict[str, Entry]:
    return {
        name: Entry(name, Kind[kind], path and Path(path), cfg, set(tags))
        for name, kind, path, cfg, tags in json.loads(file.read_bytes())
    }
