"""Write files that are not yet whole: under a name that cannot be a user's, and put into its place in one step."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

OWN = re.compile(r"\.lillama-[0-9a-f]{32}\.partial")


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to, then rename it to ``place``; after an error nothing of it is left.

    A file at ``place`` is replaced; a folder there must be empty or gone by then.
    """
    temporary = place.with_name(f".lillama-{uuid4().hex}.partial")
    try:
        yield temporary
        temporary.replace(place)
    finally:
        _remove(temporary)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; nobody else may be at work there."""
    for path in folder.glob(".lillama-*.partial"):
        if OWN.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
