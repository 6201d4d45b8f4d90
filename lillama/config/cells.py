"""The folder of a cell: named by its overrides, so that the same request finds the same folder."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

LONGEST_READABLE = 100
SAID_ABOVE = ("experiments", "scale", "name")  # by the folders that a cell's lies in


def cell_name(overrides: Sequence[str], sweep: str | Path | None = None) -> str:
    """Return a folder name for a list of overrides: readable, safe, and different for different overrides.

    ``strategy.k=96 init=svd`` becomes ``init-svd_k-96-1f0c93a2``; the order of the overrides does not matter. It has
    letters, digits, dots, dashes and underscores only: lists of ``key=value`` pairs may hold it, as the evaluation
    harness's ``--model_args`` and Hydra's overrides are.

    :param sweep: the folder that the cell's lies in. Where it holds the cell under the name that earlier versions gave
        it, that name stays: what is finished is not run again.
    """
    if not overrides:
        return "default"
    overrides = sorted(overrides)
    name = _name(overrides, pair="-", between="_", legal="A-Za-z0-9._-")
    if sweep is not None and not (Path(sweep) / name).is_dir():
        earlier = _name(overrides, pair="=", between=",", legal="A-Za-z0-9._,=+-")
        if (Path(sweep) / earlier).is_dir():
            return earlier
    return name


def _name(overrides: Sequence[str], *, pair: str, between: str, legal: str) -> str:
    parts = [override.lstrip("+~").partition("=") for override in overrides]
    own = [(key, value) for key, _, value in parts if key not in SAID_ABOVE]
    short = between.join(f"{key.rpartition('.')[2]}{pair}{value.rpartition('/')[2]}" for key, value in own)
    safe = re.sub(rf"[^{legal}]+", "_", short)[:LONGEST_READABLE].strip("._") or "default"
    return f"{safe}-{hashlib.sha256(chr(10).join(overrides).encode()).hexdigest()[:8]}"
