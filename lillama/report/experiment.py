"""The cells of an experiment, run or not: from its folder of outputs, else from the results that came with the code."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lillama.config.compose import CONF, EXPERIMENTS, Sweep, experiment_sweep
from lillama.core.errors import ConfigError
from lillama.core.results import read_json, read_result
from lillama.report.cells import Cell
from lillama.report.entries import Table, make_table

OUTPUTS, RESULTS = Path("outputs"), EXPERIMENTS / "results"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of results: ``outputs`` of runs, a folder a cell; ``frozen`` ones, a JSON file a cell."""

    outputs: Path = OUTPUTS
    frozen: Path = RESULTS


@dataclass(frozen=True, slots=True)
class Found:
    """An experiment at a scale: every cell, run or not, and the tables that they make."""

    name: str
    scale: str
    cells: Sequence[Cell]
    tables: Sequence[Table]

    @property
    def command(self) -> str:
        """Return the command that runs the cells that are not done."""
        return f"python run.py experiments={self.name} scale={self.scale}"


def experiment_found(name: str, scale: str, places: Places) -> Found:
    """Return an experiment at a scale, whatever of it was run.

    :raises ConfigError: for an experiment, or a scale of it, that there is not.
    """
    sweep = _sweep_at(name, scale)
    cells = experiment_cells(sweep, places)
    tables = [make_table(table, own, scale, cells, sweep.given) for table, own in sweep.experiment.tables.items()]
    return Found(name, scale, cells, tables)


def experiment_tables(name: str, scale: str, places: Places) -> list[Table]:
    """Return all tables of an experiment at a scale, as :func:`experiment_found` has them."""
    return list(experiment_found(name, scale, places).tables)


def _sweep_at(name: str, scale: str) -> Sweep:
    try:
        return experiment_sweep(name, scale)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"experiments={name}: {first.partition('interpolation: ')[2] or first}") from None


def scale_names() -> list[str]:
    """Return all scales that an experiment may have."""
    return sorted(file.stem for file in (CONF / "scale").glob("*.yaml"))


def experiment_cells(sweep: Sweep, places: Places) -> list[Cell]:
    """A cell for every one that the sweep has, with its newest result: one that is done before one that is not."""
    results = list(_results(sweep.name, places))
    found = []
    for overrides in sweep.cells:
        own = [(folder, result) for folder, result in results if set(overrides) <= set(result["overrides"])]
        folder, result = max(own, key=_rank, default=(places.outputs / sweep.name, None))
        found.append(Cell(folder, dict(word.partition("=")[::2] for word in overrides), result))
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
