"""The cells of an experiment, run or not: from its folder of outputs, else from the results that came with the code."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lillama.config.compose import CONF, EXPERIMENTS, Sweep, experiment_sweep, scales_of
from lillama.core.errors import ConfigError
from lillama.core.results import read_json, read_result
from lillama.report.cells import Cell
from lillama.report.entries import Table, make_table
from lillama.report.layout import tables_of

OUTPUTS, RESULTS = Path("outputs"), EXPERIMENTS / "results"
SCALE = "paper"  # where none is asked for


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of results: ``outputs`` of runs, a folder a cell; ``frozen`` ones, a JSON file a cell."""

    outputs: Path = OUTPUTS
    frozen: Path = RESULTS


@dataclass(frozen=True, slots=True)
class Found:
    """An experiment at a scale: every cell, run or not, and the tables that belong to it.

    ``cells`` are by the experiment that runs them (``paper/table04_dense``): a table may show those of several.
    """

    name: str
    scale: str
    by_experiment: dict[str, list[Cell]]
    tables: Sequence[Table]

    @property
    def cells(self) -> list[Cell]:
        """Return the cells of all experiments."""
        return [cell for cells in self.by_experiment.values() for cell in cells]

    @property
    def commands(self) -> list[str]:
        """Return the commands that run the cells that are not done; all commands where all are."""
        left = [name for name, cells in self.by_experiment.items() if any(cell.status != "done" for cell in cells)]
        return [f"python run.py experiments={name}" for name in left or self.by_experiment]


def experiment_found(name: str, scale: str, places: Places) -> Found:
    """Return an experiment at a scale, whatever of it was run.

    :raises ConfigError: for an experiment, or a scale of it, that there is not.
    """
    layouts = tables_of(name)
    shown = dict.fromkeys([name, *(one for layout in layouts.values() for one in layout.experiments)])
    cells = {one: experiment_cells(sweep_at(one, scale), places) for one in shown if scale in scales_of(one)}
    if name not in cells:
        raise ConfigError(f"scale {scale}: {name} has {', '.join(scales_of(name))}")
    tables = [
        make_table(table, layout, scale, [cell for one in layout.experiments for cell in cells.get(one, [])])
        for table, layout in layouts.items()
    ]
    return Found(name, scale, {f"{scale}/{one}": own for one, own in cells.items()}, tables)


def experiment_tables(name: str, scale: str, places: Places) -> list[Table]:
    """Return all tables of an experiment at a scale, as :func:`experiment_found` has them."""
    return list(experiment_found(name, scale, places).tables)


def sweep_at(name: str, scale: str) -> Sweep:
    """Return an experiment's sweep at a scale.

    :raises ConfigError: for an experiment, or a scale of it, that there is not, or one that does not compose.
    """
    try:
        return experiment_sweep(f"{scale}/{name}")
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"experiments={scale}/{name}: {first.partition('interpolation: ')[2] or first}") from None


def scale_names() -> list[str]:
    """Return all scales that an experiment may have."""
    return sorted(file.stem for file in (CONF / "scale").glob("*.yaml"))


def experiment_cells(sweep: Sweep, places: Places) -> list[Cell]:
    """Return every cell of a sweep with its newest result: one that is done before one that is not."""
    results = list(_results(sweep.name, places))
    found = []
    for overrides in sweep.cells:
        own = [(folder, result) for folder, result in results if set(overrides) <= set(result["overrides"])]
        folder, result = max(own, key=_rank, default=(places.outputs / sweep.name, None))
        words = dict(word.partition("=")[::2] for word in overrides)
        found.append(Cell(folder, words, result, sweep.given))
    return found


def _results(name: str, places: Places) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted((places.outputs / name).glob("*/results.json")):
        result = read_result(file.parent)
        if result is not None:
            yield file.parent, result
    for file in sorted((places.frozen / name).glob("*.json")):
        yield file.with_suffix(""), read_json(file)


def _rank(found: tuple[Path, dict[str, Any]]) -> tuple[bool, str]:
    result = found[1]
    return result["status"] == "done", str(result["provenance"].get("started", ""))
