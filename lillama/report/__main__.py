"""``python -m lillama report NAME``: an experiment's tables, one table, or a sweep's folder; ``--all``: a page.

What was not run says MISSING, what failed FAILED; the exit status is then 1.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lillama.core.errors import BAD_INPUT, ConfigError
from lillama.core.terminal import show
from lillama.report.cells import Cell, cells, tell_open_cells
from lillama.report.entries import Table
from lillama.report.experiment import OUTPUTS, RESULTS, SCALE, Places, experiment_found, scale_names
from lillama.report.figure import figure_png
from lillama.report.frame import as_csv
from lillama.report.latex import as_latex
from lillama.report.left import tell_left
from lillama.report.markdown import as_markdown
from lillama.report.names import named, reported_names
from lillama.report.overview import reported
from lillama.report.page import write_page
from lillama.report.sweep import sweep_table, texts_side_by_side

PAGE = "report.html"
FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(as_markdown, tables)),
    "csv": lambda tables: as_csv(tables).rstrip("\n"),
    "latex": lambda tables: "\n\n".join(map(as_latex, tables)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; 1 where something is not measured, 2 for a name that there is not."""
    options = _parser().parse_args(arguments)
    try:
        if options.scale not in scale_names():
            raise ConfigError(f"--scale {options.scale}: must be one of {', '.join(scale_names())}")
        return _report(options)
    except ConfigError as error:
        show(f"error: {error}", error=True)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lillama report", description=__doc__)
    parser.add_argument("name", nargs="?", help="an experiment, a table (table12), or a folder (outputs/NAME)")
    parser.add_argument("--scale", default=SCALE, help=f"of an experiment: {', '.join(scale_names())} ({SCALE})")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="of an experiment's tables")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write the figures of the tables there, as PNG")
    parser.add_argument("--samples", action="store_true", help="the generated texts of the cells side by side")
    parser.add_argument("--all", action="store_true", help="a page of all experiments at all scales")
    parser.add_argument("--html", type=Path, metavar="FILE", help=f"where that page is written (outputs/{PAGE})")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER", help="where runs lie (outputs)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where results that came with the code lie"
    )
    return parser


def _report(options: argparse.Namespace) -> int:
    if options.all or (options.name and options.html):
        return _page(options)
    if options.name is None:
        raise ConfigError("name an experiment, a table or a folder, or say --all")
    folder = Path(options.name)
    return _folder(folder, options) if folder.is_dir() else _experiment(options)


def _page(options: argparse.Namespace) -> int:
    """Write the page of all experiments, or of the one that is named, and a line of counts for each."""
    names = reported_names() if options.all else [named(options.name)[0]]
    found = []
    for one in reported(names, Places(options.outputs, options.results)):
        show(one.line())
        found.append(one)
    file = options.html or options.outputs / PAGE
    write_page(found, file)
    show(f"written to {file}")
    return 0


def _folder(folder: Path, options: argparse.Namespace) -> int:
    found = cells(folder)
    if not found:
        raise ConfigError(f"{folder}: holds no results")
    show(_texts(str(folder), found) if options.samples else sweep_table(found))
    return tell_open_cells(found)


def _experiment(options: argparse.Namespace) -> int:
    name, wanted = named(options.name)
    found = experiment_found(name, options.scale, Places(options.outputs, options.results))
    if options.samples:
        show(_texts(f"{name} at scale {options.scale}", found.cells))
        return tell_open_cells(found.cells)
    tables = [table for table in found.tables if table.name in wanted]
    show(FORMATS[options.format](tables))
    if options.figures is not None:
        _write_figures(tables, options.figures)
    return tell_left(found, tables)


def _texts(where: str, found: Sequence[Cell]) -> str:
    page = texts_side_by_side(found)
    if not page:
        raise ConfigError(f"{where}: no cell has the stage samples")
    return page


def _write_figures(tables: Sequence[Table], folder: Path) -> None:
    """``FOLDER/TABLE_SCALE.png`` for each table that has a figure; told on stderr, as stdout is the tables'."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        picture = figure_png(table)
        if picture is not None:
            file = folder / f"{table.name}_{table.scale}.png"
            file.write_bytes(picture)
            show(f"figure: {file}", error=True)


if __name__ == "__main__":
    sys.exit(main())
