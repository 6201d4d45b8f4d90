"""The architecture that a configuration writes out: every key known, every size one that can be built."""

import difflib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, configuration_utils, modeling_rope_utils

from lillama.core.errors import ConfigError

KEY = "model.architecture"
LARGEST = 2**31 - 1
# Of parts that are modules of their own, a Python object each.
COUNTS = re.compile(r"(?:^|_)(?:n_)?(?:layers?|blocks?|experts|heads?|groups|depth)$")
MOST_PARTS = 4096
CODE = ("auto_map",)  # names code to be run, not a size


def inline_architecture(given: Mapping[str, Any]) -> Any:
    """Make transformers' configuration of ``model.architecture``.

    :raises ConfigError: for a family, a key or a value that transformers does not know, or a size out of all bounds.
    """
    values = dict(given)
    family = values.pop("model_type", None)
    for key, value in _numbers(values, KEY):
        _check(key, value)
    try:
        default = AutoConfig.for_model(family)
    except Exception as error:  # noqa: BLE001 - a family that there is not, or that has no defaults
        raise _refused(family, error) from None
    known = {*default.to_dict(), *type(default).attribute_map}
    for key in values:
        if key in CODE or not (key in known or _is_read(default, key)):
            near = difflib.get_close_matches(key, sorted(known), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"{KEY}.{key}: {family} has no such key{hint}")
    try:
        return AutoConfig.for_model(family, **values)
    except Exception as error:  # noqa: BLE001 - each family checks its values in its own way
        raise _refused(family, error) from None


def _refused(family: Any, error: Exception) -> ConfigError:
    return ConfigError(f"{KEY}: not an architecture of {family} ({' '.join(str(error).split())[:300]})")


def _is_read(default: Any, key: str) -> bool:
    """Return whether a family's code mentions a key that is no field of its configuration (``head_dim``)."""
    own = Path(inspect.getfile(type(default))).parent.glob("*.py")
    files = [*own, *(Path(inspect.getfile(module)) for module in (configuration_utils, modeling_rope_utils))]
    word = re.compile(rf"\b{re.escape(key)}\b")
    return not hasattr(type(default), key) and any(word.search(file.read_text(encoding="utf-8")) for file in files)


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, own in value.items():
            yield from _numbers(own, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, own in enumerate(value):
            yield from _numbers(own, f"{key}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def _check(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be finite")
    most = MOST_PARTS if COUNTS.search(key.rpartition(".")[2]) else LARGEST
    if abs(value) > most:
        raise ConfigError(f"{key}={value}: must be at most {most:,}")
