"""Code that a model brings with it: run only where it is asked for, and only that of a pinned commit."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lillama.config import ModelConfig
from lillama.core.errors import ConfigError

COMMIT = re.compile(r"[0-9a-f]{40}")


def code_options(config: ModelConfig, wanted: str, place: Path | None, key: str) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` by which a model's own code is run, or is not.

    Code of a local folder is part of its content; that of a Hub repository is what ``model.revision`` says.

    :param wanted: the configured path. :param place: where it lies; None for a Hub id. :param key: whose path it is.
    :raises ConfigError: for code that nothing pins.
    """
    if not config.trust_remote_code:
        return {"trust_remote_code": False}
    said = f"model.trust_remote_code=true: {key}={wanted}"
    if place is None:
        if wanted != config.path:
            raise ConfigError(f"{said}: code is run from model.path only; give a local folder")
        if not COMMIT.fullmatch(config.revision or ""):
            raise ConfigError(f"{said} brings code of its own; give model.revision=COMMIT, in 40 hexadecimal digits")
        return {"trust_remote_code": True, "code_revision": config.revision}
    for name, other in _elsewhere(place):
        raise ConfigError(f"{said}: {name} names code of {other}, which nothing pins; copy it into the folder")
    return {"trust_remote_code": True}


def _elsewhere(folder: Path) -> Iterator[tuple[str, str]]:
    """The references to code of other repositories in a folder's JSON files: each a file's name and a reference."""
    for file in sorted(folder.glob("*.json")):
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # said by whoever needs it
            continue
        known = known.get("auto_map") if isinstance(known, dict) else None
        for part in _words(known):
            if "--" in part:
                yield file.name, part.partition("--")[0]


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _words(part)
