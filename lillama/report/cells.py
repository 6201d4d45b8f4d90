"""The cells of a sweep: those that its ``multirun.yaml`` promises, and what became of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from lillama.config.cells import cell_name
from lillama.config.compose import sweep_cells
from lillama.core.results import FILE, MISSING, read_result
from lillama.core.terminal import show
from lillama.report.promise import promise

DAMAGED = "DAMAGED"  # a results.json that cannot be read, or lacks what a result has


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a sweep: its folder, what sets it apart, and its result if there is one.

    ``given`` is what it is where it overrides nothing: ``model`` and ``reduction`` of an experiment's cell.
    """

    folder: Path
    overrides: dict[str, str]
    result: dict[str, Any] | None
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """``done``, or FAILED, INTERRUPTED, RUNNING, DAMAGED, MISSING."""
        if self.result is None:
            return DAMAGED if (self.folder / FILE).is_file() else MISSING
        status = str(self.result["status"])
        return status if status == "done" else status.upper()


def cells(folder: Path) -> list[Cell]:
    """The cells of a sweep's folder: those that its ``multirun.yaml`` promises, then any others that are there."""
    promised = [(folder / cell_name(own, folder), _as_dict(own)) for own in promised_overrides(folder)]
    names = {path for path, _ in promised}
    found = [Cell(path, overrides, read_result(path)) for path, overrides in promised]
    for path in sorted(file.parent for file in folder.rglob("results.json") if file.parent not in names):
        result = read_result(path)
        overrides = _as_dict(result["overrides"]) if result is not None else {}
        found.append(Cell(path, overrides or {"folder": path.name}, result))
    return found


def promised_overrides(folder: Path) -> list[list[str]]:
    """Return the overrides of every cell of the last sweep in a folder; none where there was no sweep.

    None either where its file does not say them by itself: what it varies is interpolated, or a glob. That is told.

    :raises ConfigError: for a ``multirun.yaml`` that cannot be read.
    """
    file = folder / "multirun.yaml"
    if not file.is_file():
        return []
    said = promise(file)
    try:
        if not said.interpolated:
            return sweep_cells(said.params, said.task)
    except HydraException:  # a glob can only be expanded by the sweep itself
        pass
    show(f"{file}: does not say by itself which cells the sweep has; those that were begun are listed", error=True)
    return []


def all_overrides(found: Sequence[Cell]) -> list[str]:
    """Return the keys that any cell overrides, in the order in which they come."""
    return list(dict.fromkeys(key for cell in found for key in cell.overrides))


def varying(found: Sequence[Cell]) -> list[str]:
    """Return the overrides that are not the same in all cells."""
    return [key for key in all_overrides(found) if len({cell.overrides.get(key) for cell in found}) > 1]


def tell_open_cells(found: Sequence[Cell]) -> int:
    """Name the cells that are not done, each with its reason; the exit status, 1 where there are any."""
    left = [cell for cell in found if cell.status != "done"]
    if left:
        show(f"\n{len(left)} of {len(found)} cells are not done:", error=True)
    for cell in left:
        again = f"mend or remove its {FILE}" if cell.status == DAMAGED else "start the same sweep again to run it"
        reason = (cell.result or {}).get("error") or again
        show(f"  {cell.folder.name}: {cell.status}: {reason}", error=True)
    return 1 if left else 0


def _as_dict(overrides: Sequence[str]) -> dict[str, str]:
    return {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}
