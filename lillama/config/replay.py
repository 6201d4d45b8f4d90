"""Replay a run: the words of a command line that compose the configuration which a run has left."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lillama.config.compose import composed
from lillama.core.errors import ConfigError

OPTION = "--config"
CHOICES = "choices"
SWEEPS = "experiments"  # brings a sweep of its own; what it chose and set is in the other values


def replayed(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``--config FILE`` is replaced by what composes that file; the rest comes after.

    :raises ConfigError: for a file that is no ``config.yaml`` of a run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(OPTION, type=Path)
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError:
        raise ConfigError(f"{OPTION}: name the config.yaml of a run") from None
    return rest if known.config is None else [*_words_of(known.config.expanduser()), *rest]


def _words_of(file: Path) -> list[str]:
    settings = _read(file)
    groups = [f"{group}={option}" for group, option in settings.pop(CHOICES).items() if group != SWEEPS]
    known: Any = OmegaConf.to_container(composed(groups), resolve=False, enum_to_str=True)
    return [*groups, *_differences(settings, known)]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{OPTION}={file}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict) or not isinstance(found.get(CHOICES), dict):
        raise ConfigError(f"{OPTION}={file}: is no config.yaml of a run, or one of a version that kept no choices")
    return found


def _differences(wanted: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the overrides by which a composed configuration becomes another."""
    for key, value in wanted.items():
        own = known.get(key)
        if isinstance(value, dict) and isinstance(own, dict) and own and value:
            yield from _differences(value, own, f"{prefix}{key}.")
        elif key not in known or value != own:
            yield f"++{prefix}{key}={_said(value)}"
    yield from (f"~{prefix}{key}" for key in known.keys() - wanted.keys())


def _said(value: Any) -> str:
    """Write a value in Hydra's grammar of overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_said, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_said(key)}:{_said(one)}' for key, one in value.items())}}}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)
