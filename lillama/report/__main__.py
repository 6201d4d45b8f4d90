"""``python -m lillama.report FOLDER``: every cell of a sweep, run or not.

A cell that was not run says MISSING, one that failed says FAILED; the exit status is then 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lillama.report.cells import cells, tell_open_cells
from lillama.report.sweep import sweep_table, texts_side_by_side


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a folder; 1 where a cell is not done, 2 for a folder without results."""
    parser = argparse.ArgumentParser(prog="python -m lillama.report", description="The table of a sweep, run or not.")
    parser.add_argument("folder", type=Path, help="a sweep's folder (outputs/NAME), or one run's")
    parser.add_argument("--samples", action="store_true", help="the generated texts of the cells side by side")
    options = parser.parse_args(arguments)
    found = cells(options.folder) if options.folder.is_dir() else []
    page = texts_side_by_side(found) if options.samples else ""
    wrong = (
        "no such folder"
        if not options.folder.is_dir()
        else "holds no results"
        if not found
        else "no cell has the stage samples"
        if options.samples and not page
        else None
    )
    if wrong:
        print(f"error: {options.folder}: {wrong}", file=sys.stderr)
        return 2
    print(page or sweep_table(found))
    return tell_open_cells(found)


if __name__ == "__main__":
    sys.exit(main())
