"""Find the file or folder that a model path stands for, or that it is a Hub id."""

from pathlib import Path

from lillama.config import ModelConfig
from lillama.core.errors import ConfigError
from lillama.model.packages import SCHEME, package_file


def local_place(path: str, cache_dir: Path, key: str = ModelConfig.KEY) -> Path | None:
    """Return the file or folder that a model path stands for; None for a Hub id.

    :param cache_dir: where a file that lies in parts is joined. :param key: the setting that errors name.
    :raises ConfigError: for a package that is not installed, or a path that looks local and is not there.
    """
    if path.startswith(SCHEME):
        return package_file(path, cache_dir, key)
    place = Path(path).expanduser()
    if place.exists():
        return place
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") > 1 or path.endswith(".gguf")
    if looks_local:
        raise ConfigError(f"{key}={path}: no such file or folder")
    return None
