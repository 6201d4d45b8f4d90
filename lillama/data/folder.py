"""Find the files of a path that hold its rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from lillama.config import Format, TextConfig
from lillama.core.errors import ConfigError
from lillama.data.formats import SUFFIXES, compression_of, format_of

# What the library datasets and the Hub keep beside the rows.
SIDECARS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
CARDS = ("readme", "license", "licence", "citation")
SPLITS, STATE = "dataset_dict.json", "state.json"


def text_files(config: TextConfig, key: str) -> list[tuple[Path, Format]]:
    """List the files of a local path, each with its format.

    Of a folder: those of the pattern ``config.files``; or all of known formats, without hidden ones and, beside tables,
    without a dataset's card and licence. Of a folder that ``datasets.save_to_disk`` wrote: what it says it holds, of
    several splits ``config.split``.

    :raises ConfigError: for a path that is not there or cannot be read, holds no such file, or one of unknown format.
    """
    try:
        path = Path(str(config.path)).expanduser()
        if path.is_file():
            return [(path, _format(path, config.format, key))]
        if not path.is_dir():
            raise ConfigError(f"{key}.path={path}: no such file or folder")
        found = _chosen(path, config, key) if config.files is not None else _in_folder(path, config, key)
        if not found:
            kind = f"ending in {', '.join(SUFFIXES)}" if config.files is None else f"of the pattern {config.files}"
            raise ConfigError(f"{key}.path={path}: holds no file {kind}")
        return [(file, _format(file, config.format, key)) for file in found]
    except OSError as error:
        raise ConfigError(f"{key}.path={config.path}: cannot be read ({error.strerror or error})") from None


def _format(file: Path, chosen: Format, key: str) -> Format:
    found = format_of(file, code=True) if chosen is Format.auto else chosen
    if found is None:
        known = ", ".join(SUFFIXES)
        raise ConfigError(
            f"{key}.path={file}: the format of {file.suffix or 'a file without a suffix'} is not known"
            f" (known: {known}); give {key}.format, for instance text"
        )
    if found in (Format.parquet, Format.arrow) and compression_of(file):
        raise ConfigError(f"{key}.path={file}: {found.name} files are compressed by themselves; unpack it")
    return found


def _chosen(folder: Path, config: TextConfig, key: str) -> list[Path]:
    try:
        return sorted(file for file in folder.glob(str(config.files)) if file.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"{key}.files={config.files}: must be a pattern of files in the folder ({error})") from None


def _in_folder(folder: Path, config: TextConfig, key: str) -> list[Path]:
    if (folder / SPLITS).is_file():
        folder = _split(folder, config.split, key)
    if (folder / STATE).is_file():
        return _saved(folder, key)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file, folder)]
    files = [file for file in files if file.name not in SIDECARS]
    if config.format is Format.auto:
        files = [file for file in files if format_of(file) is not None]
    tables = any(format_of(file) not in (None, Format.text) for file in files)
    return [file for file in files if not (tables and _is_card(file))]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_card(file: Path) -> bool:
    return format_of(file) is Format.text and file.name.partition(".")[0].lower() in CARDS


def _split(folder: Path, split: str, key: str) -> Path:
    there = sorted(file.parent.name for file in folder.glob(f"*/{STATE}"))
    if split not in there:
        raise ConfigError(f"{key}.split={split}: {folder} holds no such split; there are {', '.join(there) or 'none'}")
    return folder / split


def _saved(folder: Path, key: str) -> list[Path]:
    """Return the files that a saved dataset names; others beside them are leftovers of the library's own cache."""
    where = f"{key}.path={folder / STATE}"
    try:
        names = [entry["filename"] for entry in json.loads((folder / STATE).read_text())["_data_files"]]
        files: Sequence[Path] = [folder / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}: does not say which files a saved dataset has") from None
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{where}: names {file.name}, which is not there")
    return list(files)
