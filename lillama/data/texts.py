"""Rows as text for a tokenizer; what had to be skipped or replaced is counted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lillama.config import InvalidRows, SystemTurns, Template
from lillama.core.errors import ConfigError
from lillama.data.chat import TemplateError, nameless_templates, render, uses_template
from lillama.data.rows import ListedRows, Row, RowError, Rows, is_plain, joined_turns, plain_text, turns_of

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Counts of rows skipped because they are invalid, and of characters replaced in the others."""

    skipped_rows: int = 0
    replaced_characters: int = 0

    def __add__(self, other: "RowCounts") -> "RowCounts":
        skipped, replaced = self.skipped_rows + other.skipped_rows, self.replaced_characters + other.replaced_characters
        return RowCounts(skipped, replaced)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


NOTHING_LEFT_OUT = RowCounts()


@dataclass(frozen=True, slots=True)
class RowText:
    """The text of a row.

    :param plain: whether the row is plain text, no turns. :param templated: whether a chat template wrote it, with the
        special tokens that belong to it.
    """

    text: str
    plain: bool
    templated: bool


class RowTexts:
    """The texts of rows, each rendered when it is asked for.

    ``texts[index]`` is None for a row that is skipped.

    :raises RowError: by ``texts[index]``, for an invalid row where those are refused.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Any,
        *,
        template: Template = Template.auto,
        system: SystemTurns = SystemTurns.keep,
        invalid: InvalidRows = InvalidRows.refuse,
        key: str = "data",
    ) -> None:
        self._rows = rows if isinstance(rows, Rows) else ListedRows(rows, key)
        self._tokenizer, self._template, self._system = tokenizer, template, system
        self._invalid, self._key = invalid, key
        self._skipped: set[int] = set()
        self._replaced: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RowText | None:
        try:
            row = self._rows[index]
            return self._text(row, index)
        except RowError:
            if self._invalid is InvalidRows.refuse:
                raise
            self._skipped.add(index)
            return None

    def __iter__(self) -> Iterator[RowText]:
        """Give the texts of all valid rows in their order."""
        return (text for index in range(len(self)) if (text := self[index]) is not None)

    @property
    def counts(self) -> RowCounts:
        """Count the rows skipped and the characters replaced so far; a row that is read again counts once."""
        return RowCounts(len(self._skipped), sum(self._replaced.values()))

    def _text(self, row: Row, index: int) -> RowText:
        plain = is_plain(row)
        templated = not plain and uses_template(self._tokenizer, self._template)
        if templated and (names := nameless_templates(self._tokenizer)):
            legal = "the tokenizer has several chat templates and none is the default"
            raise ConfigError(f"{self._key}.template=auto: {legal} ({', '.join(names)}); give none")
        try:
            text = row_text(row, self._tokenizer, self._template, self._system)
        except TemplateError as error:
            raise RowError(f"{self._rows.where(index)}: {error}") from None
        text, replaced = encodable(text)
        if replaced:
            self._replaced[index] = replaced
        return RowText(text, plain, templated)


def row_text(row: Row, tokenizer: Any, template: Template, system: SystemTurns) -> str:
    """Make a row one string: plain text as it is, turns through the chat template or joined by blank lines.

    :raises TemplateError: for turns that the chat template refuses.
    """
    if is_plain(row):
        return plain_text(row)
    turns = turns_of(row, system)
    return render(turns, tokenizer, system) if uses_template(tokenizer, template) else joined_turns(turns)


def encodable(text: str) -> tuple[str, int]:
    """Replace what UTF-8 has no bytes for, halves of surrogate pairs, and drop a byte order mark at the beginning.

    :return: the text, and how many characters were replaced.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text, replaced = whole, whole.count(REPLACEMENT) - text.count(REPLACEMENT)
    else:
        replaced = 0
    return text.removeprefix("\ufeff"), replaced
