"""``python -m lillama freeze NAME --scale SCALE``: the results of an experiment, to be kept with the code.

Of every cell that is done, ``results.json`` as it came out of the run goes to
``experiments/results/NAME/SCALE/CELL.json``, without the places of files, which mean nothing elsewhere.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lillama.core.errors import BAD_INPUT, ConfigError
from lillama.core.results import write_json
from lillama.core.terminal import show
from lillama.report.experiment import OUTPUTS, RESULTS, SCALE, Places, experiment_cells, sweep_at


def freeze(name: str, scale: str, *, outputs: Path = OUTPUTS, frozen: Path = RESULTS) -> list[Path]:
    """Write a file for every cell of an experiment that is done and has run in ``outputs``.

    :raises ConfigError: for an experiment, or a scale of it, that there is not.
    """
    sweep = sweep_at(name, scale)
    files = []
    for cell in experiment_cells(sweep, Places(outputs, frozen)):
        if cell.status == "done" and cell.folder.is_relative_to(outputs):
            place = frozen / sweep.name
            place.mkdir(parents=True, exist_ok=True)
            files.append(place / f"{short_name(cell.overrides)}.json")
            write_json(files[-1], without_places(cell.result))
    return files


def short_name(overrides: dict[str, str]) -> str:
    """Return a file's name for a cell: what the sweep varies, readable."""
    words = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in overrides.items())
    return "".join(letter if letter.isalnum() or letter in "=,.-" else "_" for letter in words).strip("_") or "cell"


def without_places(value: Any) -> Any:
    """Return a result in which an absolute path is only the last part of it."""
    if isinstance(value, dict):
        return {key: without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_places(part) for part in value]
    if isinstance(value, str):
        key, equals, place = value.rpartition("=")
        return key + equals + Path(place).name if place.startswith(("/", "~")) else value
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Freeze experiments; 2 for a bad name."""
    parser = argparse.ArgumentParser(prog="python -m lillama freeze", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="experiments")
    parser.add_argument("--scale", default=SCALE)
    parser.add_argument("--outputs", type=Path, default=OUTPUTS)
    options = parser.parse_args(arguments)
    try:
        for name in options.names:
            for file in freeze(name, options.scale, outputs=options.outputs):
                show(file)
    except ConfigError as error:
        show(f"error: {error}", error=True)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
