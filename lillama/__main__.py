"""Hand a command line to its command: ``python -m lillama COMMAND ...``, or ``lillama COMMAND ...``."""

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lillama.core.errors import BAD_INPUT

SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
# Each has a main(arguments) -> exit status, and a --help of its own.
COMMANDS = {
    "report": ("lillama.report.__main__", "tables and figures of sweeps, experiments and the paper"),
    "freeze": ("lillama.report.freeze", "keep an experiment's results with the code"),
    "bench": ("lillama.bench.__main__", "table and figure of what the engine costs"),
    "cache": ("lillama.core.cache.__main__", "list or clear what is kept between runs"),
    "checkpoint": ("lillama.run.checkpoint", "turn a plain checkpoint into a pivoted one"),
    "prefetch": ("lillama.evaluate.prefetch", "fill a folder with the data of zero-shot tasks"),
}
RUN = "run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 for one that there is not."""
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name == RUN:
        return _run(rest)
    if name in COMMANDS:
        return import_module(COMMANDS[name][0]).main(rest)
    if name in ("-h", "--help"):
        print(_help())
        return 0
    print(_help() if not name else f"lillama: there is no command {name!r}\n{_help()}", file=sys.stderr)
    return BAD_INPUT


def _run(words: Sequence[str]) -> int:
    """Run ``run.py``, which composes the configuration that lies beside it."""
    if not SCRIPT.is_file():
        said = f"lillama run: there is no {SCRIPT}; the configuration comes with a checkout, not with the package"
        print(said, file=sys.stderr)
        return BAD_INPUT
    sys.argv = [str(SCRIPT), *words]
    runpy.run_path(str(SCRIPT), run_name="__main__")  # ends by SystemExit
    return 0


def _help() -> str:
    known = {RUN: "compress, train and measure a model (run.py): lillama run --help"}
    known |= {name: says for name, (_, says) in COMMANDS.items()}
    return "\n".join(["usage: lillama COMMAND ...", *(f"  {name:<11}{says}" for name, says in known.items())])


if __name__ == "__main__":
    sys.exit(main())
