"""The folders of a cache: each made and marked by Lillama; another's folder of the same name is left alone."""

import errno
import re
from pathlib import Path

from lillama.core.environment import variable

PLACE = "~/.cache/lillama"
KINDS = ("gguf", "joined", "tokens", "factors", "scores", "models", "harness")
# The other kinds hold folders.
SUFFIXES = {"tokens": ".safetensors", "factors": ".safetensors", "scores": ".json", "harness": ".json"}
LOCKS = "locks"
MARK = ".lillama-cache"
TEXT = "Lillama made this folder and may remove the entries of its own in it (python -m lillama cache).\n"
HALF_WRITTEN = re.compile(r"[0-9a-f]{32}\.partial")
KEY = r"[0-9a-f]{32,64}"
FORMS = {
    **{kind: re.compile(rf"{KEY}\.[0-9a-f]{{64}}{re.escape(suffix)}") for kind, suffix in SUFFIXES.items()},
    **{kind: re.compile(KEY) for kind in KINDS if kind not in SUFFIXES},
    LOCKS: re.compile(rf"{KEY}\.lock"),
}


def default_root() -> Path:
    """``cache_dir`` of a run that gives none; an empty variable is one that is not set."""
    return Path(variable("LILLAMA_CACHE", PLACE))


class ForeignFolderError(OSError):
    """A folder that the cache would use belongs to something else."""

    def __init__(self, folder: Path) -> None:
        super().__init__(errno.EEXIST, f"it was not made by Lillama, since it has no {MARK}", str(folder))


def is_ours(folder: Path) -> bool:
    """Return whether a folder carries the mark."""
    return (folder / MARK).is_file()


def is_entry(path: Path, kind: str) -> bool:
    """Return whether a path has the form of this kind's entries: the name, and a file or a folder, but no link."""
    whole = FORMS[kind].fullmatch(path.name) is not None and not path.is_symlink()
    return whole and (path.is_file() if kind in SUFFIXES or kind == LOCKS else path.is_dir())


def claim(root: Path, kind: str) -> Path:
    """Make the folder of a kind and mark it.

    One that is there already is marked where all that it holds has the form of entries: an empty one, or one that a
    version without marks left.

    :raises ForeignFolderError: for a folder that holds anything else.
    :raises OSError: where it cannot be written.
    """
    folder = root / kind
    folder.mkdir(parents=True, exist_ok=True)
    if is_ours(folder):
        return folder
    found = [path for path in folder.iterdir() if path.suffix != ".partial" and path.name != MARK]
    if not all(is_entry(path, kind) for path in found):
        raise ForeignFolderError(folder)
    (folder / MARK).write_text(TEXT, encoding="utf-8")
    return folder


def foreign(root: Path) -> list[Path]:
    """Return the folders that are named like a kind's and carry no mark."""
    return [root / kind for kind in KINDS if (root / kind).is_dir() and not is_ours(root / kind)]
