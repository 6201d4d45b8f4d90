"""The schemas by group, as Hydra is told of them, and a configuration as plain values."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore

from lillama.config.hashed import CONTENT, KEY
from lillama.config.option import SCHEMAS


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, enums by name: for YAML and JSON."""
    return _values(config, hashed=False)


def hashed_values(config: Any) -> dict[str, Any]:
    """Return what a result depends on, as plain values: see :mod:`lillama.config.hashed`."""
    return _values(config, hashed=True)


def _values(config: Any, *, hashed: bool) -> dict[str, Any]:
    found, schema = {}, config.__class__
    for key, hint, mark in _fields_of(schema):
        if not hashed or mark is None:
            found[key] = _plain(getattr(config, key), hint, hashed=hashed)
        elif mark == CONTENT:
            found[key] = None
    return found


def _plain(value: Any, hint: Any, *, hashed: bool) -> Any:
    """One value; a whole number where a float belongs is one, as in a composed configuration."""
    if is_dataclass(value):
        return _values(value, hashed=hashed)
    if isinstance(value, Enum):
        return value.name
    inner = _inner(hint)
    if isinstance(value, Mapping):
        return {_plain(key, None, hashed=hashed): _plain(one, inner, hashed=hashed) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, inner, hashed=hashed) for one in value]
    return float(value) if type(value) is int and float in _either(hint) and int not in _either(hint) else value


@cache
def _fields_of(schema: Any) -> list[tuple[str, Any, str | None]]:
    """Return the fields of a configuration: name, type, and what the fingerprint makes of it."""
    hints = get_type_hints(schema)
    return [(field.name, hints[field.name], field.metadata.get(KEY)) for field in fields(schema)]


def _either(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _inner(hint: Any) -> Any:
    """Return the type of what a list or a mapping holds."""
    return next((get_args(one)[-1] for one in _either(hint) if get_args(one)), None)


@cache
def register_schemas() -> None:
    """Make the schemas known to Hydra, once; ``conf/`` names them in its defaults lists."""
    # Hydra copies its store at each composition and some hundred times for --help; what it loads from it is a copy too.
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
