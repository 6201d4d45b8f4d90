"""Read rows of text: a Hub dataset, local files, or the documentation topics that ship with CPython."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lillama.config import Format, InvalidRows, Source, TextConfig
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest, readable_digest
from lillama.data.folder import text_files
from lillama.data.formats import compression_of
from lillama.data.json_list import as_lines, is_list
from lillama.data.records import Records, delimited, json_lines, whole_text
from lillama.data.rows import CheckedRows, ListedRows, Row, Rows
from lillama.data.tables import table_rows
from lillama.data.utf8 import utf8_file

HELD_OUT_EVERY = 10
CHECKED_AT_ONCE = 2**26  # bytes of local files up to which every row is looked at, needed or not


def read_rows(config: TextConfig, key: str) -> Rows:
    """Open the rows of a text; each is read and checked when it is asked for, so that a text may be of any size.

    Of local text up to 64 MiB every row is looked at at once, unless rows may be skipped: a run does not depend on
    whether its budget comes to the wrong one.

    :param key: names the configuration group in errors.
    :raises ConfigError: for a missing, empty or unreadable file, or a row without the needed columns (with its line).
    """
    if config.source is Source.stdlib_docs:
        return _wanted(ListedRows(stdlib_topics(config.split, key), f"{key}.source=stdlib_docs"), config, key)
    files = None if config.source is Source.hub else text_files(config, key)
    opened = _hub_rows(config, key) if files is None else read_files(files, f"{key}.path")
    if not len(opened):
        raise ConfigError(f"{key}.path={config.path}: holds no rows")
    rows = CheckedRows(_wanted(opened, config, key))
    if config.invalid_rows is InvalidRows.refuse:
        few = files is not None and sum(file.stat().st_size for file, _ in files) <= CHECKED_AT_ONCE
        for index in range(len(rows) if few else 1):
            rows[index]
    return rows


def _wanted(rows: Rows, config: TextConfig, key: str) -> Rows:
    """Take the configured slice of the rows.

    :raises ConfigError: for a slice without a row.
    """
    if config.rows is None:
        return rows
    found = SlicedRows(rows, config.wanted)
    if not len(found):
        raise ConfigError(f"{key}.rows={config.rows}: none of the {len(rows)} rows")
    return found


class SlicedRows(Rows):
    """Some of the rows of a text, told by their places in it."""

    def __init__(self, rows: Rows, wanted: slice) -> None:
        self._rows = rows
        self._places = range(len(rows))[wanted]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[self._places[index]]

    def where(self, index: int) -> str:
        return self._rows.where(self._places[index])


def source_identity(config: TextConfig, key: str) -> str:
    """Name the rows without their path: a hash of the content and how it is read, or a Hub dataset's name and split."""
    whole = _whole_identity(config, key)
    return whole if config.rows is None else digest([whole, config.rows])


def _whole_identity(config: TextConfig, key: str) -> str:
    if config.source is Source.stdlib_docs:
        return digest(list(stdlib_topics(config.split, key)))
    if config.source is Source.hub:
        path = Path(str(config.path))
        place = readable_digest(path, f"{key}.path") if path.is_dir() else str(path)
        return digest([place, config.revision, config.subset, config.split, config.files])
    if config.source is Source.speech:
        return readable_digest(Path(str(config.path)).expanduser(), f"{key}.path")
    files = text_files(config, key)
    return digest([(readable_digest(file, f"{key}.path"), form.name, compression_of(file)) for file, form in files])


def stdlib_topics(split: str, key: str) -> list[Row]:
    """List CPython's documentation topics; every tenth by name is ``heldout``, the others are ``train``."""
    if split not in ("train", "heldout", "all"):
        raise ConfigError(f"{key}.split={split}: must be train, heldout or all for stdlib_docs")
    from pydoc_data.topics import topics

    held_out = set(sorted(topics)[::HELD_OUT_EVERY])
    return [
        {"text": topics[name]}
        for name in sorted(topics)
        if split == "all" or (name in held_out) == (split == "heldout")
    ]


def read_files(files: Sequence[tuple[Path, Format]], key: str) -> Rows:
    """Open local files, one after the other; ``key`` names the setting in errors."""
    opened = [read_file(file, form, f"{key}={file}") for file, form in files]
    return opened[0] if len(opened) == 1 else JoinedRows(opened)


def read_file(file: Path, form: Format, where: str) -> Rows:
    """Open the rows of a file.

    :raises ConfigError: for a file that cannot be read, or is not of this format.
    """
    if form in (Format.parquet, Format.arrow):
        return table_rows(file, form, where)
    held = utf8_file(file, where)
    match form:
        case Format.json if is_list(held):
            held = as_lines(held, where)
            found = json_lines(held, word="row")
        case Format.json:
            found = json_lines(held, hint="; it must be a list of rows, or hold a row a line")
        case Format.csv | Format.tsv:
            found = delimited(held, "," if form is Format.csv else "\t", where)
        case Format.text:
            found = whole_text(held)
        case _:
            found = json_lines(held)
    return Records(held, found, where)


class JoinedRows(Rows):
    """The rows of several texts, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        part, place = self._place(index)
        return part[place]

    def where(self, index: int) -> str:
        part, place = self._place(index)
        return part.where(place)

    def _place(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


def _hub_rows(config: TextConfig, key: str) -> Rows:
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
    return ListedRows(rows, f"{key}.path={config.path}")


def data_files(config: TextConfig) -> dict[str, str] | None:
    """The files of a Hub dataset that its split is read from, as the library ``datasets`` takes them; None for all."""
    return None if config.files is None else {config.split.partition("[")[0]: config.files}
