"""Bounds of every value of a configuration: sizes, numbers that are none, paths that cannot be."""

import dataclasses
import errno
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lillama.config.data import LARGEST_TOKEN_BUDGET
from lillama.core.errors import ConfigError, require

LARGEST_NUMBER = 2**31 - 1  # of what is counted: ranks, batches, epochs
LONGEST = 2**24  # tokens in one sequence
LARGEST_SEED = 2**63 - 1
LARGEST = {
    **dict.fromkeys(("seed", "seeds"), LARGEST_SEED),
    **dict.fromkeys(("tokens", "max_tokens", "every_tokens", "project_tokens"), LARGEST_TOKEN_BUDGET),
    **dict.fromkeys(("seq_len", "stride", "lengths", "prompt", "new_tokens", "max_new_tokens"), LONGEST),
}
PATHS = ("path", "tokenizer", "baseline", "file", "tasks_dir", "cache_dir")
NAMED = ("revision", "include", "exclude", "files", "device")  # what an empty text would match, or be taken for none
FREE = ("experiment",)  # read by reports only
MISSING_PLACE = (errno.ENOENT, errno.ENOTDIR)


def check_values(config: Any) -> None:
    """Raise a :class:`ConfigError` for the first value of a configuration that can be no value at all."""
    for key, value in _values(config, ""):
        name = _name(key)
        if value is None and key.endswith("]"):
            raise ConfigError(f"{key}=null: must not be null")
        if isinstance(value, float):
            require(math.isfinite(value), key, value, "must be finite")
        elif isinstance(value, int):
            most = LARGEST.get(name, LARGEST_NUMBER)
            require(-most <= value <= most, key, value, f"must lie between {-most:,} and {most:,}")
        elif isinstance(value, str):
            require("\0" not in value, key, repr(value), "must not hold a NUL character")
            require(bool(value.strip()) or name not in NAMED, key, repr(value), "must not be empty")
            if name in PATHS:
                check_path(key, value)


def check_path(key: str, value: str) -> None:
    """Raise a :class:`ConfigError` where a path can name nothing, or the system does not let one look there.

    A Hub id, and a path at which nothing lies, are told by whoever reads them.
    """
    require(bool(value.strip()), key, repr(value), "must not be empty")
    try:
        Path(value).expanduser().stat()
    except RuntimeError:  # ~nobody, or no home
        raise ConfigError(f"{key}={value}: there is no such home folder; give a path without ~") from None
    except OSError as error:
        if error.errno not in MISSING_PLACE:
            raise ConfigError(f"{key}={value}: cannot be read ({error.strerror})") from None


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no group, with its key as the command line writes it."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name not in FREE:
                yield from _values(getattr(value, field.name), f"{key}.{field.name}" if key else field.name)
    elif isinstance(value, dict):
        for name, own in value.items():
            yield from _values(own, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, own in enumerate(value):
            yield from _values(own, f"{key}[{number}]")
    else:
        yield key, value


def _name(key: str) -> str:
    return key.partition("[")[0].rpartition(".")[2]
