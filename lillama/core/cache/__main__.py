"""``python -m lillama cache`` lists what is kept between runs; ``clear [KIND ...]`` after it removes it."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lillama.core.cache.entries import Entry, clear, entries
from lillama.core.cache.folders import KINDS, MARK, PLACE, default_root, foreign
from lillama.core.errors import BAD_INPUT
from lillama.core.terminal import show

CONTENT = """\
kinds:
  gguf      GGUF files as Hugging Face folders; never removed but by clear
  joined    model files that packages carry in parts
  tokens    calibration texts as blocks of tokens
  factors   whole factorisations of a model's matrices, of which every rank is a cut
  scores    scores and perplexities of a model, task by task and text by text
  models    distilled models of runs with reuse=true; never removed but by clear
  harness   the evaluation harness's index of its tasks, which takes seconds to make

Tokens and factors are removed, the least recently used first, where they pass cache_limit_gb of a run.
Whatever is removed is made again when it is needed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """List or clear; 2 for a kind that there is not."""
    options = _parser().parse_args(arguments)
    try:
        root = options.dir.expanduser()
    except RuntimeError as error:
        show(f"error: --dir {options.dir}: {error}", error=True)
        return BAD_INPUT
    if options.command is None:
        show(table(root))
        return 0
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        show(f"error: no such kind: {', '.join(unknown)}; the kinds are {', '.join(KINDS)}", error=True)
        return BAD_INPUT
    if options.older_than is not None and options.older_than < 0:
        show(f"error: --older-than {options.older_than:g}: must not be negative", error=True)
        return BAD_INPUT
    for folder in foreign(root):
        show(f"{folder}: was not made by Lillama, since it has no {MARK}; left alone", error=True)
    gone = clear(root, options.kinds or KINDS, options.older_than)
    show(f"{root}: removed {len(gone)} entries, {_size(gone)} freed")
    return 0


def table(root: Path) -> str:
    """Return a line a kind: how many entries, their size, when one was last used; and their sum."""
    found = entries(root)
    lines = [f"{root}", f"{'kind':<8} {'entries':>8} {'size':>10}  last used"]
    lines += [_line(kind, [entry for entry in found if entry.kind == kind]) for kind in KINDS]
    return "\n".join([*lines, _line("total", found)])


def _line(name: str, found: Sequence[Entry]) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(entry.used for entry in found))) if found else "-"
    return f"{name:<8} {len(found):>8} {_size(found):>10}  {used}"


def _size(found: Sequence[Entry]) -> str:
    size: float = sum(entry.size for entry in found)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _folder(name: str) -> Path:
    """Return a folder's name as it is given; an empty one would be the current folder.

    :raises argparse.ArgumentTypeError: for an empty name.
    """
    if not name.strip():
        raise argparse.ArgumentTypeError("must name a folder")
    return Path(name)


def _parser() -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--dir",
        type=_folder,
        default=argparse.SUPPRESS,
        help=f"the cache's folder; else $LILLAMA_CACHE, else {PLACE}",
    )
    parser = argparse.ArgumentParser(
        prog="python -m lillama cache",
        description="List what is kept between runs, or clear it.",
        epilog=CONTENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[place],
    )
    parser.set_defaults(dir=default_root())
    commands = parser.add_subparsers(dest="command", metavar="clear")
    clearing = commands.add_parser("clear", help="remove entries", description="Remove entries.", parents=[place])
    clearing.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; none is all of them")
    clearing.add_argument("--older-than", type=float, metavar="DAYS", help="only what was last used so long ago")
    return parser


if __name__ == "__main__":
    sys.exit(main())
