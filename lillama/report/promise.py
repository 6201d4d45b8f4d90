"""The cells that a sweep's ``multirun.yaml`` promises, read as data: it may be a stranger's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lillama.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Promise:
    """Overrides that a sweep varies, and those beside."""

    params: Mapping[str, str]
    task: Sequence[str]

    @property
    def interpolated(self) -> bool:
        """Tell whether what is varied depends on other values, so that the file alone does not say what it is."""
        return any("${" in value for value in self.params.values())


def promise(file: Path) -> Promise:
    """Read a ``multirun.yaml``; nothing in it is interpolated.

    :raises ConfigError: for a file that is no readable ``multirun.yaml``.
    """
    try:
        hydra = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]
        params = hydra["sweeper"].get("params") or {}
        task = hydra["overrides"]["task"] or []
        return Promise({str(key): _words(value) for key, value in params.items()}, [*map(str, task)])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: no readable multirun.yaml ({type(error).__name__}: {reason})") from None


def _words(value: Any) -> str:
    return "null" if value is None else str(value)
