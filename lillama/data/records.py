"""Rows of a file of text, read one by one: only where they begin is held in memory."""

import csv
import io
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lillama.core.errors import ConfigError
from lillama.data.rows import RowError, Rows
from lillama.data.utf8 import Utf8File

MOST_OFFSETS = 2**20  # that are held of one file; beyond, every second, every fourth, ...
WHOLE_TEXT = 2**24  # bytes up to which a text is one row
PASSAGE, LONGEST_PASSAGE = 2**16, 2**20
BLANK_LINES = (b"\n", b"\r\n")
Group = Callable[[BinaryIO], Iterator[list[bytes]]]


@dataclass(frozen=True, slots=True)
class Form:
    """Grouping of lines into records, and of a record's text into a row.

    :param parse: raises ValueError. :param word: what the number of a record counts, for errors. :param start, line:
        where the first record is.
    """

    group: Group
    parse: Callable[[str], Any]
    start: int
    line: int = 1
    word: str = "line"


class Records(Rows):
    """Rows of a file of UTF-8, by their offsets."""

    def __init__(self, file: Utf8File, form: Form, source: str) -> None:
        self._file, self._form, self._source = file, form, source
        self._offsets, self._lines, self._step, self._count = array("q"), array("q"), 1, 0
        self._reader: Iterator[tuple[int, int, bytes]]
        for offset, line, _ in _read(file, form.group, form.start, form.line):
            self._note(offset, line)
        self._next, self._reader = 0, _read(file, form.group, form.start, form.line)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        line, record = self._record(index)
        try:
            return self._form.parse(_text(record))
        except UnicodeDecodeError as error:
            line += record.count(b"\n", 0, error.start)
            byte = record[error.start]
            raise RowError(f"{self._named(line)}: cannot be read, it is not UTF-8 (byte 0x{byte:02x})") from None
        except (ValueError, RecursionError) as error:
            raise RowError(f"{self._named(line)}: {error}") from None

    def where(self, index: int) -> str:
        return self._named(self._record(index)[0])

    def _named(self, line: int) -> str:
        return f"{self._source}: {self._form.word} {line}"

    def _note(self, offset: int, line: int) -> None:
        if self._count % self._step == 0:
            if len(self._offsets) == MOST_OFFSETS:
                self._offsets, self._lines, self._step = self._offsets[::2], self._lines[::2], 2 * self._step
            self._offsets.append(offset)
            self._lines.append(line)
        self._count += 1

    def _record(self, index: int) -> tuple[int, bytes]:
        """Return the line and the bytes of a record; those that follow each other are read in one go."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index != self._next:
            place = index // self._step
            reader = _read(self._file, self._form.group, self._offsets[place], self._lines[place])
            self._reader = itertools.islice(reader, index % self._step, None)
        _, line, record = next(self._reader)
        self._next = index + 1
        return line, record


def _read(file: Utf8File, group: Group, offset: int, line: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the records from an offset on that are not blank, each with its offset and the number of its first line."""
    with file.path.open("rb") as source:
        source.seek(offset)
        for lines in group(source):
            record = lines[0] if len(lines) == 1 else b"".join(lines)
            if record.strip():
                yield offset, line, record
            offset += len(record)
            line += record.count(b"\n")


def _text(record: bytes) -> str:
    """Decode a record. A byte order mark before a line is what joining files left there.

    :raises ValueError: for bytes that are not UTF-8, or NUL, which UTF-16 without its mark is full of.
    """
    text = record.decode()
    if "\0" in text:
        raise ValueError("holds NUL bytes; is it UTF-16 without a byte order mark, or no text?")
    return text.removeprefix("\ufeff")


def json_lines(file: Utf8File, *, word: str = "line", hint: str = "") -> Form:
    """Read a JSON object a line; ``hint`` ends the error for a line that is none."""

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"not JSON ({error}){hint}") from None

    return Form(one_line, parse, file.start, word=word)


def whole_text(file: Utf8File) -> Form:
    """Read a text as one row; a long one as passages that begin after blank lines, which joining them gives back."""
    whole = file.size <= WHOLE_TEXT
    return Form(all_lines if whole else passages, lambda text: _parse_text(text, cut=not whole), file.start)


def _parse_text(text: str, *, cut: bool) -> Any:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return {"text": text.removesuffix("\n\n") if cut else text}


def delimited(file: Utf8File, delimiter: str, where: str) -> Form:
    """Read a record of cells a row; the first names the columns.

    :raises ConfigError: for a first line that names none.
    """
    with file.path.open("rb") as source:
        source.seek(file.start)
        head = next(quoted_lines(source), [])
    try:
        columns = _cells(_text(b"".join(head)), delimiter)
    except ValueError as error:
        raise ConfigError(f"{where}: line 1: {error}") from None
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{where}: line 1: names a column twice ({', '.join(columns)})")

    def parse(text: str) -> Any:
        cells = _cells(text, delimiter)
        if len(cells) != len(columns):
            raise ValueError(f"has {len(cells)} cells, the first line names {len(columns)} columns")
        return dict(zip(columns, cells, strict=True))

    return Form(quoted_lines, parse, file.start + sum(map(len, head)), 1 + len(head))


def _cells(text: str, delimiter: str) -> list[str]:
    csv.field_size_limit(2**31 - 1)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"not {'CSV' if delimiter == ',' else 'TSV'} ({error})") from None
    if len(rows) > 1:
        raise ValueError("a quotation mark stands in a cell that is not quoted")
    return rows[0] if rows else []


def one_line(file: BinaryIO) -> Iterator[list[bytes]]:
    """Take each line as a record."""
    return ([line] for line in file)


def all_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Take all that there is as one record."""
    return iter([[file.read()]])


def quoted_lines(file: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield as a record as many lines as it takes to close every quotation mark."""
    lines: list[bytes] = []
    quoted = False
    for line in file:
        lines.append(line)
        quoted ^= line.count(b'"') % 2 == 1
        if not quoted:
            yield lines
            lines = []
    if lines:
        yield lines


def passages(file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield as a record a passage that ends at a blank line, or where there is none for long, at any."""
    lines: list[bytes] = []
    size = 0
    while line := file.readline(LONGEST_PASSAGE):
        # A character is not cut in two: its later bytes are 10xxxxxx.
        while not line.endswith(b"\n") and file.peek(1)[:1] and file.peek(1)[0] & 0xC0 == 0x80:  # type: ignore[attr-defined]
            line += file.read(1)
        lines.append(line)
        size += len(line)
        if (size >= PASSAGE and line in BLANK_LINES) or size >= LONGEST_PASSAGE:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines
