"""A JSON list as JSON lines, item by item: a list of any length is never held whole."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from lillama.core.errors import ConfigError
from lillama.data.utf8 import CHUNK, Utf8File

LONGEST_ITEM = 2**28  # characters


def is_list(file: Utf8File) -> bool:
    """Tell a JSON list by its first character; what is none may be JSON lines."""
    with file.path.open("rb") as source:
        source.seek(file.start)
        return source.read(CHUNK).lstrip().startswith(b"[")


def as_lines(file: Utf8File, where: str) -> Utf8File:
    """Write the items of a JSON list into a temporary file, one a line.

    :raises ConfigError: for what is no JSON list, with the number of the row.
    """
    kept = NamedTemporaryFile(prefix="lillama-")  # noqa: SIM115 - it lives as long as the rows that are read of it
    number = 0
    try:
        for item in _items(_Text(file)):
            kept.write(json.dumps(item).encode() + b"\n")
            number += 1
        kept.flush()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: cannot be read, row {number + 1} is not UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: row {number + 1}: not JSON ({error})") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None
    return Utf8File(Path(kept.name), 0, kept.tell(), kept)


class _Text:
    """Rest of a file that is to be parsed, decoded as it is needed."""

    def __init__(self, file: Utf8File) -> None:
        self._chunks = self._decoded(file)
        self.ahead = ""
        self.more()

    @staticmethod
    def _decoded(file: Utf8File) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file.path.open("rb") as source:
            source.seek(file.start)
            while chunk := source.read(CHUNK):
                yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    def more(self) -> bool:
        """Decode as much again as is held; False where the file is at its end."""
        wanted, parts = max(len(self.ahead), 1), []
        while wanted > 0 and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            wanted -= len(chunk)
        self.ahead += "".join(parts)
        return bool(parts)

    def take(self, characters: str) -> str:
        """Take the next character that is no white space, if it is one of these; else an empty string."""
        self.ahead = self.ahead.lstrip()
        while not self.ahead and self.more():
            self.ahead = self.ahead.lstrip()
        found = self.ahead[:1]
        if not found or found not in characters:
            return ""
        self.ahead = self.ahead[1:]
        return found


def _items(text: _Text) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text.take("[")
    if not text.take("]"):
        while True:
            yield _item(text, decoder)
            if not (mark := text.take(",]")):
                raise ValueError("expected a comma or the end of the list")
            if mark == "]":
                break
    if text.take(text.ahead[:1]) or text.ahead:
        raise ValueError("text after the end of the list")


def _item(text: _Text, decoder: json.JSONDecoder) -> Any:
    """The next item. More is read as long as it cannot be parsed, or ends where what was read ends (as 12 of 123)."""
    text.take("")
    while True:
        try:
            item, end = decoder.raw_decode(text.ahead)
        except json.JSONDecodeError as error:
            if len(text.ahead) > LONGEST_ITEM or not text.more():
                raise ValueError(error.msg) from None
            continue
        if end < len(text.ahead) or not text.more():
            text.ahead = text.ahead[end:]
            return item
