"""List what a cache's folders hold: entries, and what killed processes left half-written."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lillama.core.cache.folders import HALF_WRITTEN, KINDS, is_entry, is_ours

DAY = 86400


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, or one folder of a model: its size in bytes and when it was last used (Unix time)."""

    kind: str
    path: Path
    size: int
    used: float


def entries(root: Path, kinds: Sequence[str] = KINDS) -> list[Entry]:
    """All whole entries of these kinds; nothing of a folder without the cache's mark, nothing of another form."""
    found = []
    for kind in kinds:
        for path in _inside(root / kind):
            with suppress(OSError):  # evicted meanwhile, or not for this user to see
                if is_entry(path, kind):
                    found.append(Entry(kind, path, _size(path), path.stat().st_mtime))
    return found


def clear(root: Path, kinds: Sequence[str] = KINDS, older_than: float | None = None) -> list[Entry]:
    """Remove the entries of these kinds, or those last used that many days ago or earlier; those that are gone."""
    chosen = entries(root, kinds)
    if older_than is not None:
        chosen = [entry for entry in chosen if entry.used <= time.time() - older_than * DAY]
    for entry in chosen:
        remove(entry.path)
    sweep_partial(root)
    return [entry for entry in chosen if not entry.path.exists()]


def sweep_partial(root: Path) -> None:
    """Remove what killed processes left half-written a day ago or earlier."""
    for kind in KINDS:
        for path in _inside(root / kind):
            with suppress(OSError):
                half_written = HALF_WRITTEN.fullmatch(path.name) and not path.is_symlink()
                if half_written and path.stat().st_mtime < time.time() - DAY:
                    remove(path)


def touch(path: Path) -> None:
    """Note that an entry was used now; a cache that is only readable keeps its times."""
    with suppress(OSError):
        os.utime(path)


def remove(path: Path) -> None:
    """Remove an entry: a reader that has the file open keeps it; who may not remove it leaves it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _inside(folder: Path) -> Iterator[Path]:
    """List a folder that carries the mark."""
    with suppress(OSError):
        if is_ours(folder):
            yield from sorted(folder.iterdir())


def _size(path: Path) -> int:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
