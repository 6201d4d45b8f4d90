"""The cells that a sweep's ``multirun.yaml`` promises, read as data: it may be a stranger's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lillama.config.compose import set_up
from lillama.core.errors import ConfigError

# A table of literals by scale, which our experiments sweep over; all that is ever evaluated of such a file.
AT_SCALE = re.compile(r"\$\{at:\{[^$]*\}\}")
SCALE = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Promise:
    """Overrides that a sweep varies, and those beside."""

    params: Mapping[str, str]
    task: Sequence[str]


def promise(file: Path) -> Promise:
    """Read a ``multirun.yaml``. Nothing in it is interpolated but a table of literals by the sweep's own scale.

    :raises ConfigError: for a file that is no readable ``multirun.yaml``.
    """
    try:
        hydra = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]
        # An experiment's own default too.
        scale = hydra["runtime"]["choices"].get("scale")
        params = hydra["sweeper"].get("params") or {}
        task = hydra["overrides"]["task"] or []
        return Promise({str(key): _literal(value, scale) for key, value in params.items()}, [*map(str, task)])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: no readable multirun.yaml ({type(error).__name__}: {reason})") from None


def _literal(value: Any, scale: Any) -> str:
    """Return a value as it stands there, or what a table of literals has for a scale."""
    if not (isinstance(value, str) and isinstance(scale, str) and SCALE.fullmatch(scale) and AT_SCALE.fullmatch(value)):
        return "null" if value is None else str(value)
    set_up()
    try:
        return str(OmegaConf.create({"scale": scale, "value": value}).value)
    except OmegaConfBaseException:
        return value
