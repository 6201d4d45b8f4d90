"""``python -m lillama prefetch FOLDER [NAME ...]``: tasks' data from the Hub, for ``evaluate.tasks_dir``.

For clusters whose nodes have no Hub: run it where there is one, and copy the folder. A name is a task, group or tag of
the harness, or an option of ``evaluate/zero_shot`` (``nine``, which is also what no name means).
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lillama.core.environment import forget_empty
from lillama.core.errors import ConfigError
from lillama.core.half_written import whole
from lillama.core.terminal import show
from lillama.evaluate.tasks import SPLITS, check_name, load_task, quiet_harness, task_manager

SETS = Path(__file__).resolve().parents[2] / "conf" / "evaluate" / "zero_shot"
DEFAULT = "nine"


def prefetch(folder: Path, names: Sequence[str]) -> list[str]:
    """Write every split that a task names into ``folder/TASK/SPLIT.jsonl``; what could not be had, a line each."""
    left = []
    with quiet_harness():
        manager = task_manager()
        for name in dict.fromkeys(chain.from_iterable(map(_members, names))):
            try:
                check_name(manager, name)
                for leaf, task in load_task(manager, name)["tasks"].items():
                    show(f"{leaf}: {', '.join(_write(folder / leaf, task))}")
            except ConfigError as error:
                left.append(str(error))
    return left


def _members(name: str) -> list[str]:
    """Return the tasks of a set, or the name itself."""
    file = SETS / f"{name}.yaml"
    return list(OmegaConf.load(file).tasks) if file.is_file() else [name]


def _write(place: Path, task: Any) -> Iterator[str]:
    """Yield the splits that were written, each with its number of rows."""
    place.mkdir(parents=True, exist_ok=True)
    for split in dict.fromkeys(split for split in (getattr(task.config, key) for key in SPLITS) if split):
        rows = task.dataset[split]
        with whole(place / f"{split}.jsonl") as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        yield f"{split} {len(rows):,}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill a folder; 1 where something could not be had."""
    parser = argparse.ArgumentParser(prog="python -m lillama prefetch", description=__doc__)
    parser.add_argument("folder", type=Path, help="what evaluate.tasks_dir will name")
    parser.add_argument("names", nargs="*", default=[DEFAULT], metavar="NAME", help="tasks, groups, tags or sets")
    options = parser.parse_args(arguments)
    forget_empty()
    try:
        left = prefetch(options.folder, options.names)
    except (ConfigError, OSError) as error:
        left = [str(error)]
    for line in left:
        show(f"error: {line}", error=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
