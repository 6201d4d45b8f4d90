"""Replay a run: the words of a command line that compose the configuration which a run has left."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lillama.config.compose import CONF, set_up
from lillama.core.errors import ConfigError

OPTION = "--config"
CHOICES = "choices"
SWEEPS = "experiments"  # brings a sweep of its own; what it chose and set is in the other values


def replayed(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``--config FILE`` is replaced by what composes that file; the rest comes after.

    :raises ConfigError: for a file that is no ``config.yaml`` of a run.
    """
    given = [number for number, word in enumerate(words) if word.partition("=")[0] == OPTION]
    if not given:
        return list(words)
    number = given[0]
    _, apart, file = words[number].partition("=")
    taken = 1 if apart else 2
    if not apart:
        if number + 1 == len(words):
            raise ConfigError(f"{OPTION}: name the config.yaml of a run")
        file = words[number + 1]
    rest = [*words[:number], *words[number + taken :]]
    return [*_words_of(Path(file).expanduser()), *rest]


def _words_of(file: Path) -> list[str]:
    settings = _read(file)
    groups = [f"{group}={option}" for group, option in settings.pop(CHOICES).items() if group != SWEEPS]
    set_up()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed: Any = OmegaConf.to_container(compose("config", overrides=groups), resolve=False, enum_to_str=True)
    return [*groups, *_differences(settings, composed)]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{OPTION}={file}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict) or not isinstance(found.get(CHOICES), dict):
        raise ConfigError(f"{OPTION}={file}: is no config.yaml of a run, or one of a version that kept no choices")
    return found


def _differences(wanted: Mapping[str, Any], composed: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the overrides by which a composed configuration becomes another."""
    for key, value in wanted.items():
        known = composed.get(key)
        if isinstance(value, dict) and isinstance(known, dict) and known and value:
            yield from _differences(value, known, f"{prefix}{key}.")
        elif key not in composed or value != known:
            yield f"++{prefix}{key}={_said(value)}"
    yield from (f"~{prefix}{key}" for key in composed.keys() - wanted.keys())


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
