"""Register the configuration classes of Hydra's groups, and the functions that do what each asks for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

Schema = TypeVar("Schema")
SCHEMAS: dict[str | None, dict[str, type]] = {}
METHODS: dict[type, str] = {}


def option(group: str | None, name: str, *, by: str | None = None) -> Callable[[type[Schema]], type[Schema]]:
    """Register a dataclass as the schema ``NAME_schema`` of a group of ``conf/``.

    The YAML of an option begins with ``defaults: [NAME_schema, _self_]``: an unknown key or a wrong type then fails
    while the configuration is composed.

    :param by: the function that does what the class configures, as ``package.module:function``. It is imported when it
        is first needed: composing a configuration takes no torch.
    """

    def register(schema: type[Schema]) -> type[Schema]:
        SCHEMAS.setdefault(group, {})[f"{name}_schema"] = schema
        if by is not None:
            METHODS[schema] = by
        return schema

    return register


def method(config: object) -> Any:
    """Return the function that does what a configuration asks for.

    :raises LookupError: for a class that names none.
    """
    module, _, function = METHODS[type(config)].partition(":")
    return getattr(import_module(module), function)
