"""Record what a figure came from: content hashes, versions, the git revision."""

import errno
import hashlib
import json
import os
import platform
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Any

from lillama.core.errors import ConfigError

WHOLE_FILE = 2**30  # bytes up to which a file is hashed in one go
PIECE = 2**26  # of a larger one, hashed several at a time
READ = 2**20
THREADS = min(16, os.cpu_count() or 1)
SETTLED = 2.0  # seconds after which a file system's clock tells one writing from the next
PACKAGES = ("lillama", "torch", "transformers", "tokenizers", "safetensors", "hydra-core", "omegaconf", "datasets")


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def path_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's names and contents."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([(str(file.relative_to(path)), path_digest(file)) for file in files])


def readable_digest(path: Path, key: str) -> str:
    """:func:`path_digest`; a path that cannot be read becomes a :class:`ConfigError` that names the key."""
    try:
        return path_digest(path)
    except OSError as error:
        raise ConfigError(f"{key}={path}: cannot be read ({error.strerror})") from None


def file_digest(file: Path) -> str:
    """Return the SHA-256 of every byte of a file; of one above 1 GiB, of its size and the digests of its pieces.

    A process hashes a file above 1 MiB once: its path, inode, size and times say whether it is still the same.
    """
    with file.open("rb") as opened:
        before = os.fstat(opened.fileno())
        key = (os.path.realpath(file), *_state(before))
        if key not in _known:
            found = (
                _digest_of_pieces(opened.fileno(), before.st_size) if before.st_size > WHOLE_FILE else _whole(opened)
            )
            settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED
            if before.st_size < READ or not settled or _state(os.fstat(opened.fileno())) != key[1:]:
                return found
            _known[key] = found
    return _known[key]


_known: dict[tuple[Any, ...], str] = {}


def _state(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _whole(opened: BufferedReader) -> str:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest_of_pieces(handle: int, size: int) -> str:
    """SHA-256 of a size and of the SHA-256 of every piece: hashing is faster than one thread, 90 GB are read whole."""

    def piece(start: int) -> bytes:
        found, end = hashlib.sha256(), min(start + PIECE, size)
        while start < end:
            part = os.pread(handle, min(READ, end - start), start)
            if not part:
                raise OSError(errno.EIO, "it became shorter while it was read")
            found.update(part)
            start += len(part)
        return found.digest()

    whole = hashlib.sha256(str(size).encode())
    with ThreadPoolExecutor(THREADS, "hash") as pool:
        for part in pool.map(piece, range(0, size, PIECE)):
            whole.update(part)
    return whole.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a figure depends on; absent ones are left out."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """The revision of the checkout that this package runs from, and whether it was changed since; null outside one."""
    revision = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain")
    return {"revision": revision, "dirty": None if revision is None or changes is None else bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
