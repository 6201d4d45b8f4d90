"""What a figure came from: content hashes, versions, the git revision."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lillama.errors import ConfigError

WHOLE_FILE = 2**30  # bytes up to which a file is hashed whole
PIECES, PIECE = 256, 2**16
PACKAGES = ("lillama", "torch", "transformers", "tokenizers", "safetensors", "hydra-core", "omegaconf", "datasets")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and contents; of weights, see :func:`_sampled_digest`."""
    if path.is_file():
        return _sampled_digest(path) if path.stat().st_size > WHOLE_FILE else file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([(str(file.relative_to(path)), path_digest(file)) for file in files])


def readable_digest(path: Path, key: str) -> str:
    """:func:`path_digest`; a path that cannot be read becomes a :class:`ConfigError` that names the key."""
    try:
        return path_digest(path)
    except OSError as error:
        raise ConfigError(f"{key}={path}: cannot be read ({error.strerror})") from None


def file_digest(file: Path) -> str:
    """SHA-256 of every byte of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sampled_digest(file: Path) -> str:
    """SHA-256 of a large file's size and of pieces spread evenly over it: 90 GB of weights are not read whole."""
    size = file.stat().st_size
    sampled = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(PIECES):
            opened.seek(number * (size - PIECE) // (PIECES - 1))
            sampled.update(opened.read(PIECE))
    return sampled.hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a figure depends on; absent ones are left out."""
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
