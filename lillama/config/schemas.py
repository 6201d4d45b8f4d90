"""The schemas by group, as Hydra is told of them, and a configuration as plain values."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore

from lillama.config.option import SCHEMAS


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, enums by name: for YAML, JSON and hashes."""
    return {key: _plain(getattr(config, key), hint) for key, hint in _hints(config)}


def _plain(value: Any, hint: Any) -> Any:
    """One value; a whole number where a float belongs is one, as in a composed configuration."""
    if is_dataclass(value):
        return {key: _plain(getattr(value, key), hint) for key, hint in _hints(value)}
    if isinstance(value, Enum):
        return value.name
    inner = _inner(hint)
    if isinstance(value, Mapping):
        return {_plain(key, None): _plain(one, inner) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, inner) for one in value]
    return float(value) if type(value) is int and float in _either(hint) and int not in _either(hint) else value


def _hints(config: Any) -> Iterable[tuple[str, Any]]:
    """Return the fields of a configuration with their types."""
    schema: Any = type(config)
    return _hints_of(schema)


@cache
def _hints_of(schema: Any) -> list[tuple[str, Any]]:
    hints = get_type_hints(schema)
    return [(field.name, hints[field.name]) for field in fields(schema)]


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
