"""Checksums that bind an entry's content to its kind and key, so that neither damage nor a swap goes unseen."""

import hashlib
import json
from pathlib import Path

from lillama.core.provenance import digest, file_digest

SEAL = "seal.json"


def checksum(kind: str, key: str, content: bytes | Path) -> str:
    """Return the SHA-256 of an entry's kind, its key and its content (bytes, or those of a file).

    :raises OSError: for a file that cannot be read.
    """
    found = hashlib.sha256(f"{kind}/{key}\n".encode())
    if isinstance(content, bytes):
        found.update(content)
        return found.hexdigest()
    with content.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: found).hexdigest()


def seal(folder: Path, kind: str, key: str) -> None:
    """Write the checksums of a folder's files into it, and one of them all with the kind and the key."""
    files = _digests(folder)
    (folder / SEAL).write_text(json.dumps({"files": files, "sha256": digest([kind, key, files])}, indent=1) + "\n")


def broken(folder: Path, kind: str, key: str) -> str | None:
    """Why a folder is not what was sealed under this kind and key; None where it is.

    :raises OSError: for a file that cannot be read.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files, own = sealed["files"], sealed["sha256"]
    except FileNotFoundError:
        return f"it has no {SEAL}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{SEAL} is no seal"
    if own != digest([kind, key, files]):
        return f"{SEAL} is another entry's"
    found = _digests(folder)
    wrong = sorted(name for name in {*files, *found} if files.get(name) != found.get(name))
    return f"{wrong[0]} was changed" if wrong else None


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
