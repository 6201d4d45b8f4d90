"""Results as tables: ``python -m lillama.report FOLDER`` prints every cell of a sweep, run or not.

A cell that was not run says MISSING, one that failed says FAILED; the exit status is then 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lillama.cells import cell_name
from lillama.results import flatten, read_result
from lillama.tables import measured_tables
from lillama.tables.markdown import table

MISSING = "MISSING"
FIGURES = {
    "parameters.compressed": "parameters",
    "reduction.realised": "removed",
    "perplexity.dense": "dense",
    "perplexity.start": "start",
    "perplexity.end": "end",
    "perplexity.finetuned": "fine-tuned",
    "tokens": "tokens",
    "seconds.distill": "distil s",
}
WHERE_ANY = {"perplexity.finetuned"}  # a column only where a cell has it


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a sweep: its folder, what sets it apart, and its result if there is one."""

    folder: Path
    overrides: dict[str, str]
    result: dict[str, Any] | None

    @property
    def status(self) -> str:
        """``done``, or FAILED, INTERRUPTED, RUNNING, MISSING."""
        status = MISSING if self.result is None else str(self.result["status"])
        return status if status == "done" else status.upper()


def summary(result: dict[str, Any]) -> str:
    """What one run cost and what it lost, as tables for a terminal."""
    overview = table(("", result["settings"]["model"]["name"]), list(_overview(result)))
    return "\n\n".join([overview, *measured_tables(result["measured"])])


def _overview(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parameters, perplexity, reduction = result["parameters"], result["perplexity"], result["reduction"]
    if parameters:
        yield "parameters", " -> ".join(f"{count:,}" for count in parameters.values())
    if reduction:
        yield "reduction", f"{reduction['realised']:.2%} (requested {reduction['requested']:.2%})"
        yield "matrices", f"{result['matrices']} in {result['blocks']} blocks"
    for name, value in perplexity.items():
        yield f"perplexity {name}", f"{value:,.2f} ({result['bits_per_byte'][name]:.4f} bits per byte)"
    if result["tokens"]:
        yield "tokens", f"{result['tokens']:,}"
    if result.get("finetune"):
        yield "fine-tuning", _tuning(result["finetune"])
    yield "seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in result["seconds"].items())
    yield "peak memory", f"{result['peak_memory'] / 2**30:.2f} GiB"
    if result["peak_device_memory"] is not None:
        yield "peak device memory", f"{result['peak_device_memory'] / 2**30:.2f} GiB"
    if result["checkpoint"] is not None:
        yield "checkpoint", result["checkpoint"]


def _tuning(found: dict[str, Any]) -> str:
    losses = [loss for _, loss in found["loss"]]
    fell = f", loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else ""
    return f"{found['tokens']:,} tokens in {found['steps']:,} steps, {found['parameters']:,} parameters learnt{fell}"


def plan_table(plan: dict[str, Any]) -> str:
    """The ranks of a ``plan.json``: a table a stack, a row a block, a column a matrix; what is missing stays dense."""
    stacks: dict[str, dict[str, dict[str, int]]] = {}
    for name, rank in plan["ranks"].items():
        stack, block, inner = place_of(name)
        stacks.setdefault(stack, {}).setdefault(block, {})[inner] = rank
    return "\n\n".join(_stack_table(stack, blocks) for stack, blocks in stacks.items())


def _stack_table(stack: str, blocks: dict[str, dict[str, int]]) -> str:
    matrices = list(dict.fromkeys(inner for ranks in blocks.values() for inner in ranks))
    rows = [[index, *(str(ranks.get(inner, "dense")) for inner in matrices)] for index, ranks in blocks.items()]
    return table([stack or "matrix", *matrices], rows)


def place_of(name: str) -> tuple[str, str, str]:
    """A matrix's stack, block and name: ``model.layers.3.mlp.fc1`` is ``model.layers``, ``3``, ``mlp.fc1``.

    One outside of every stack (the embedding, the head) is ``""``, its name, ``rank``.
    """
    parts = name.split(".")
    place = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if place is None:
        return "", name, "rank"
    return ".".join(parts[:place]), parts[place], ".".join(parts[place + 1 :])


def cells(folder: Path) -> list[Cell]:
    """The cells of a sweep's folder: those that its ``multirun.yaml`` promises, then any others that are there."""
    promised = [(folder / cell_name(overrides), _as_dict(overrides)) for overrides in promised_overrides(folder)]
    names = {path for path, _ in promised}
    found = [Cell(path, overrides, read_result(path)) for path, overrides in promised]
    for path in sorted(file.parent for file in folder.rglob("results.json") if file.parent not in names):
        result = read_result(path)
        if result is not None:
            found.append(Cell(path, _as_dict(result["overrides"]) or {"folder": path.name}, result))
    return found


def promised_overrides(folder: Path) -> list[list[str]]:
    """The overrides of every cell of the last sweep in a folder; none where there was no sweep."""
    file = folder / "multirun.yaml"
    if not file.is_file():
        return []
    hydra = OmegaConf.load(file).hydra
    swept = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]  # an experiment's own
    try:
        parsed = OverridesParser.create().parse_overrides([*swept, *hydra.overrides.task])
    except HydraException:  # a glob can only be expanded by the sweep itself
        return []
    jobs = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    return [list(job) for job in jobs]


def sweep_table(found: Sequence[Cell]) -> str:
    """All cells as a markdown table: what sets each apart, its status and its figures."""
    keys = varying(found) or all_overrides(found)
    results = [flatten(cell.result or {}) for cell in found]
    columns = [key for key in FIGURES if key not in WHERE_ANY or any(key in result for result in results)]
    rows = [
        [*(cell.overrides.get(key, "") for key in keys), cell.status, *(_shown(key, flat.get(key)) for key in columns)]
        for cell, flat in zip(found, results, strict=True)
    ]
    return table([*keys, "status", *(FIGURES[key] for key in columns)], rows)


def all_overrides(found: Sequence[Cell]) -> list[str]:
    """The keys that any cell overrides, in the order in which they come."""
    return list(dict.fromkeys(key for cell in found for key in cell.overrides))


def varying(found: Sequence[Cell]) -> list[str]:
    """The overrides that are not the same in all cells."""
    return [key for key in all_overrides(found) if len({cell.overrides.get(key) for cell in found}) > 1]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "reduction.realised":
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _as_dict(overrides: Sequence[str]) -> dict[str, str]:
    return {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a folder; 1 where a cell is not done."""
    parser = argparse.ArgumentParser(prog="python -m lillama.report", description="The table of a sweep, run or not.")
    parser.add_argument("folder", type=Path, help="a sweep's folder (outputs/NAME), or one run's")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        print(f"error: {folder}: no such folder", file=sys.stderr)
        return 2
    found = cells(folder)
    if not found:
        print(f"error: {folder}: holds no results", file=sys.stderr)
        return 2
    print(sweep_table(found))
    return tell_open_cells(found)


def tell_open_cells(found: Sequence[Cell]) -> int:
    """Name the cells that are not done, each with its reason; the exit status, 1 where there are any."""
    left = [cell for cell in found if cell.status != "done"]
    if left:
        print(f"\n{len(left)} of {len(found)} cells are not done:", file=sys.stderr)
    for cell in left:
        reason = (cell.result or {}).get("error") or "start the same sweep again to run it"
        print(f"  {cell.folder.name}: {cell.status}: {reason}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
