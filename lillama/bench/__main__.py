"""``python -m lillama bench FOLDER``: the benchmarks of a sweep as a table and a figure, every cell, run or not.

A cell that was not run says MISSING, one that failed says FAILED; the exit status is then 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lillama.bench.figure import draw_sweep
from lillama.bench.sweep import OPERATIONS, bench_table, growth, labels, paper_minutes
from lillama.core.errors import BAD_INPUT
from lillama.core.spread import shown
from lillama.core.terminal import show
from lillama.report.cells import cells, tell_open_cells

FIGURE = "bench.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a folder and write ``bench.png`` into it; 1 where a cell is not done, 2 for a bad folder."""
    parser = argparse.ArgumentParser(prog="python -m lillama bench", description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder (outputs/NAME)")
    options = parser.parse_args(arguments)
    found = cells(options.folder) if options.folder.is_dir() else []
    if not found:
        show(f"error: {options.folder}: no such folder, or no results in it", error=True)
        return BAD_INPUT
    show(bench_table(found, paper_minutes()))
    operations = growth(found, OPERATIONS)
    for key, exponent in growth(found).items():
        show(f"\nseconds a batch ~ {key}^e, e = {shown(exponent)}; counted operations: {shown(operations[key])}")
    draw_sweep(labels(found), [cell.result or {} for cell in found], options.folder / FIGURE)
    return tell_open_cells(found)


if __name__ == "__main__":
    sys.exit(main())
