"""Where rows of text come from: a Hub dataset, local files, or the documentation topics that ship with CPython."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lillama.config import Source, TextConfig
from lillama.data.rows import check_row
from lillama.errors import ConfigError
from lillama.provenance import digest, readable_digest

Row = dict[str, Any]
HELD_OUT_EVERY = 10
SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".md", ".rst")


def read_rows(config: TextConfig, key: str) -> Sequence[Row]:
    """All rows of a text; ``key`` names the configuration group in errors.

    :raises ConfigError: for a missing, empty or unreadable file, or a row without the needed columns (with its line).
    """
    if config.source is Source.stdlib_docs:
        return stdlib_topics(config.split, key)
    if config.source is Source.hub:
        return _hub_rows(config, key)
    rows = [row for file in _files(config, key) for row in _read_file(file, f"{key}.path={file}")]
    if not rows:
        raise ConfigError(f"{key}.path={config.path}: holds no rows")
    return rows


def source_identity(config: TextConfig, key: str) -> str:
    """What the rows are, without their path: a content hash, or a Hub dataset's name, revision and split."""
    if config.source is Source.stdlib_docs:
        return digest(list(stdlib_topics(config.split, key)))
    if config.source is Source.hub:
        path = Path(str(config.path))
        place = readable_digest(path, f"{key}.path") if path.is_dir() else str(path)
        return digest([place, config.revision, config.subset, config.split, config.files])
    if config.source is Source.speech:
        return readable_digest(Path(str(config.path)).expanduser(), f"{key}.path")
    return digest([readable_digest(file, f"{key}.path") for file in _files(config, key)])


def stdlib_topics(split: str, key: str) -> list[Row]:
    """CPython's documentation topics; every tenth by name is ``heldout``, the others are ``train``."""
    if split not in ("train", "heldout", "all"):
        raise ConfigError(f"{key}.split={split}: must be train, heldout or all for stdlib_docs")
    from pydoc_data.topics import topics

    held_out = set(sorted(topics)[::HELD_OUT_EVERY])
    return [
        {"text": topics[name]}
        for name in sorted(topics)
        if split == "all" or (name in held_out) == (split == "heldout")
    ]


def _hub_rows(config: TextConfig, key: str) -> Sequence[Row]:
    try:
        import datasets

        rows = datasets.load_dataset(
            config.path, config.subset, split=config.split, revision=config.revision, data_files=data_files(config)
        )
    except ImportError:
        raise ConfigError(f"{key}.source=hub: needs the package datasets (pip install datasets)") from None
    except Exception as error:  # noqa: BLE001 - whatever the Hub client says, the user gets it in one line
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{key}.path={config.path}: cannot be loaded from the Hub ({reason})") from None
    if not len(rows):
        raise ConfigError(f"{key}.path={config.path}: holds no rows")
    return CheckedRows(rows, f"{key}.path={config.path}")


def data_files(config: TextConfig) -> dict[str, str] | None:
    """The files of a Hub dataset that its split is read from, as the library ``datasets`` takes them; None for all."""
    return None if config.files is None else {config.split.partition("[")[0]: config.files}


class CheckedRows(Sequence[Row]):
    """Rows of a dataset that is too large to be checked at once: each is checked as it is read."""

    def __init__(self, rows: Any, where: str) -> None:
        self._rows = rows
        self._where = where
        self[0]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        check_row(row, f"{self._where}: row {index + 1}")
        return row


def _files(config: TextConfig, key: str) -> list[Path]:
    path = Path(str(config.path)).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{key}.path={path}: no such file or folder")
    wanted, found = config.files, path.rglob("*") if config.files is None else path.glob(config.files)
    files = sorted(file for file in found if file.is_file() and (wanted is not None or file.suffix in SUFFIXES))
    if not files:
        kind = f"ending in {', '.join(SUFFIXES)}" if wanted is None else f"of the pattern {wanted}"
        raise ConfigError(f"{key}.path={path}: the folder holds no file {kind}")
    return files


def _read_file(file: Path, where: str) -> Iterator[Row]:
    try:
        for number, row in _numbered_rows(file, where):
            check_row(row, f"{where}: line {number}")
            yield row
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None


def _numbered_rows(file: Path, where: str) -> Iterator[tuple[int, Any]]:
    match file.suffix:
        case ".jsonl":
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _parse(line, f"{where}: line {number}")
        case ".json":
            rows = _parse(file.read_text(encoding="utf-8"), where)
            if not isinstance(rows, list):
                raise ConfigError(f"{where}: must be a JSON list of rows")
            yield from enumerate(rows, 1)
        case ".parquet":
            yield from enumerate(_parquet_rows(file, where), 1)
        case _:
            text = file.read_text(encoding="utf-8")
            if text.strip():
                yield 1, {"text": text}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None


def _parquet_rows(file: Path, where: str) -> list[Row]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{where}: reading parquet needs the package pyarrow (pip install datasets)") from None
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{where}: not a parquet file ({error})") from None
