"""What a figure came from: content hashes, versions, the git revision. Imports no torch."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("lillama", "torch", "transformers", "tokenizers", "safetensors", "hydra-core", "omegaconf", "datasets")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder's names, sizes and small JSON files (weights of 90 GB are not read)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = [
        (str(file.relative_to(path)), file.stat().st_size, path_digest(file) if file.suffix == ".json" else "")
        for file in files
    ]
    return digest(listing)


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
