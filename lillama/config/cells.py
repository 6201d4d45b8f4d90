"""The folder of a cell: named by its overrides, so that the same request finds the same folder."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

LONGEST_READABLE = 100
SAID_ABOVE = ("experiments", "scale", "name")  # by the folders that a cell's lies in


def cell_name(overrides: Sequence[str], sweep: str | Path | None = None) -> str:
    """Return a folder name for a list of overrides: readable, safe, and different for different overrides.

    ``strategy.k=96 init=svd`` becomes ``init-svd_k-96-1f0c93a2``; the order of the overrides does not matter. It has
    letters, digits, dots, dashes and underscores only: lists of ``key=value`` pairs may hold it, as the evaluation
    harness's ``--model_args`` and Hydra's overrides are.

    :param sweep: the folder that the cell's lies in. Where it holds the cell under a name that earlier versions gave
        it, that name stays: what is finished is not run again.

    >>> cell_name(["strategy.k=96", "init=svd"])
    'init-svd_k-96-55ca77a1'
    """
    if not overrides:
        return "default"
    name = _name(overrides)
    if sweep is None:
        return name
    held = (own for own in (name, *_earlier_names(overrides)) if (Path(sweep) / own).is_dir())
    return next(held, name)


def _earlier_names(overrides: Sequence[str]) -> Iterator[str]:
    """Yield the names of versions that wrote ``=`` and commas, or ``experiments=NAME scale=SCALE``."""
    for words in (overrides, *_with_the_scale_apart(overrides)):
        yield _name(words)
        yield _name(words, pair="=", between=",", legal="A-Za-z0-9._,=+-")


def _with_the_scale_apart(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides with an experiment's scale as a key of its own; the paper's could be left out."""
    for said in overrides:
        key, _, value = said.partition("=")
        if key == "experiments" and "/" in value:
            scale, _, name = value.partition("/")
            others = [word for word in overrides if word != said]
            yield [*others, f"experiments={name}", f"scale={scale}"]
            if scale == "paper":
                yield [*others, f"experiments={name}"]
            if scale == "bench":
                yield [*others, f"experiments=bench_{name}"]


def _name(overrides: Sequence[str], *, pair: str = "-", between: str = "_", legal: str = "A-Za-z0-9._-") -> str:
    overrides = sorted(overrides)
    parts = [override.lstrip("+~").partition("=") for override in overrides]
    own = [(key, value) for key, _, value in parts if key not in SAID_ABOVE]
    short = between.join(f"{key.rpartition('.')[2]}{pair}{value.rpartition('/')[2]}" for key, value in own)
    safe = re.sub(rf"[^{legal}]+", "_", short)[:LONGEST_READABLE].strip("._") or "default"
    return f"{safe}-{hashlib.sha256(chr(10).join(overrides).encode()).hexdigest()[:8]}"
