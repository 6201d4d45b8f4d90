"""The folder of a cell: named by its overrides, so that the same request finds the same folder."""

import hashlib
import re
from collections.abc import Sequence

LONGEST_READABLE = 100
SAID_ABOVE = ("experiments", "scale", "name")  # by the folders that a cell's lies in


def cell_name(overrides: Sequence[str]) -> str:
    """A folder name for a list of overrides: readable, safe, and different for different overrides.

    ``strategy.k=96 init=svd`` becomes ``init=svd,k=96-1f0c93a2``; the order of the overrides does not matter.
    """
    if not overrides:
        return "default"
    overrides = sorted(overrides)
    parts = [override.lstrip("+~").partition("=") for override in overrides]
    own = [(key, value) for key, _, value in parts if key not in SAID_ABOVE]
    short = ",".join(f"{key.rpartition('.')[2]}={value.rpartition('/')[2]}" for key, value in own)
    safe = re.sub(r"[^A-Za-z0-9._,=+-]+", "_", short)[:LONGEST_READABLE].strip("._") or "default"
    return f"{safe}-{hashlib.sha256(chr(10).join(overrides).encode()).hexdigest()[:8]}"
