"""Texts of rows as pieces of at most ``seq_len`` tokens, in the configured order; none is made before it is needed."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any

from lillama.config import DataConfig, Join, Order, Packing
from lillama.data.encode import CHARACTERS_A_TOKEN, encode, encode_row
from lillama.data.order import ordered
from lillama.data.texts import RowText, RowTexts

ENCODED_WHOLE = 2**24  # characters up to which plain text is joined and encoded as one
SMALLEST_PASSAGE = 2**12  # characters
Pieces = Iterable[Sequence[int]]


def pieces(config: DataConfig, texts: RowTexts, tokenizer: Any) -> Pieces:
    """Cut the texts into pieces of token ids, with ``config.budget`` tokens or a piece more, or all that there are."""
    if config.packing is Packing.padded:
        return _rows_cut(config, texts, tokenizer)
    first = next(iter(texts), None)
    if first is None:
        return []
    join = _join(config, first)
    if join is not Join.blank_line:
        return _windows(_stream(config, texts, tokenizer, join), config.seq_len)
    text = _joined(texts)
    if text is not None:
        return _shuffled_windows(config, text, tokenizer)
    return _sampled_windows(config, texts, tokenizer)


def _join(config: DataConfig, row: RowText) -> Join:
    if config.join is not Join.auto:
        return config.join
    if row.plain:
        return Join.blank_line
    return Join.none if row.templated else Join.eos


def _rows_cut(config: DataConfig, texts: RowTexts, tokenizer: Any) -> Iterator[Sequence[int]]:
    """Rows one by one, cut at seq_len."""

    def row(index: int, most: int | None) -> list[int]:
        text = texts[index]
        return [] if text is None else encode_row(text, tokenizer, most)

    order = ordered(len(texts), config.order, config.seed)
    if config.order is Order.longest_first:
        lengths = array("q", (len(row(index, None)) for index in range(len(texts))))
        order = sorted(order, key=lambda index: -lengths[index])
    return (ids for index in order if (ids := row(index, config.seq_len)))


def _stream(config: DataConfig, texts: RowTexts, tokenizer: Any, join: Join) -> Sequence[int]:
    """Rows one after the other until the budget is met; 4 bytes a token, since a text may be taken whole."""
    between = [tokenizer.eos_token_id] if join is Join.eos and tokenizer.eos_token_id is not None else []
    order = ordered(len(texts), config.order, config.seed)
    if config.order is Order.longest_first:
        lengths = array("q", (len(text.text) if text else 0 for text in map(texts.__getitem__, range(len(texts)))))
        order = sorted(order, key=lambda index: -lengths[index])
    stream = array("i")
    for index in order:
        if (text := texts[index]) is not None:
            stream.extend(encode_row(text, tokenizer, config.budget - len(stream)) + between)
        if len(stream) >= config.budget:
            break
    return stream[: config.budget]


def _joined(texts: RowTexts) -> str | None:
    """Plain text joined by blank lines; None for more than :data:`ENCODED_WHOLE` characters."""
    parts, size = [], 0
    for row in texts:
        parts.append(row.text)
        size += len(row.text) + 2
        if size > ENCODED_WHOLE:
            return None
    return "\n\n".join(parts)


def _shuffled_windows(config: DataConfig, text: str, tokenizer: Any) -> Iterator[Sequence[int]]:
    """Yield a text cut into windows; the windows are shuffled, since its rows belong together."""
    windows = _windows(encode(text, tokenizer, special=True), config.seq_len)
    tail = windows.pop() if windows and len(windows[-1]) < config.seq_len else None
    for index in ordered(len(windows), config.order, config.seed):
        yield windows[index]
    if tail is not None:
        yield tail


def _sampled_windows(config: DataConfig, texts: RowTexts, tokenizer: Any) -> Iterator[Sequence[int]]:
    """Windows of a text that is too long to be encoded whole.

    Passages of about eight characters a token of a window are encoded by themselves: first one of every stretch of
    rows, in a seeded order, then the others. Windows lie within a passage; what is left of passages comes last.
    """
    passages = _Passages(config, texts)
    left, more = array("i"), array("q")

    def windows(text: str) -> list[Sequence[int]]:
        cut = _windows(encode(text, tokenizer, special=False), config.seq_len)
        if cut and len(cut[-1]) < config.seq_len:
            left.extend(cut.pop())
        return cut

    for number in ordered(len(passages), config.order, config.seed):
        first, *others = passages[number]
        yield from windows(first)
        if others and config.order is Order.shuffled:
            more.append(number)
        for passage in others if config.order is not Order.shuffled else ():
            yield from windows(passage)
    for number in more:
        for passage in passages[number][1:]:
            yield from windows(passage)
    yield from _windows(left, config.seq_len)


class _Passages:
    """Stretches of as many rows as make about one passage, each cut into passages, which are shuffled with a seed."""

    def __init__(self, config: DataConfig, texts: RowTexts) -> None:
        self._config, self._texts = config, texts
        self._size = max(CHARACTERS_A_TOKEN * config.seq_len, SMALLEST_PASSAGE)
        self._rows = max(1, self._size // _mean_length(texts))

    def __len__(self) -> int:
        return (len(self._texts) + self._rows - 1) // self._rows

    def __getitem__(self, number: int) -> list[str]:
        start = number * self._rows
        rows = (self._texts[index] for index in range(start, min(start + self._rows, len(self._texts))))
        cut = _cut("\n\n".join(row.text for row in rows if row is not None), self._size)
        if self._config.order is Order.shuffled:
            Random(f"{self._config.seed} {number}").shuffle(cut)
        return cut


def _mean_length(texts: RowTexts) -> int:
    """Of the rows at the beginning, as many as would be encoded whole."""
    size = number = 0
    for number, row in enumerate(texts, 1):  # noqa: B007 - the last number is the count
        size += len(row.text) + 2
        if size > ENCODED_WHOLE:
            break
    return max(size // max(number, 1), 1)


def _cut(text: str, size: int) -> list[str]:
    """A text in parts of at least ``size`` characters and less than twice that, cut before white space if there is."""
    parts, start = [], 0
    while len(text) - start >= 2 * size:
        space = text.find(" ", start + size, start + size + size // 2)
        end = start + size if space < 0 else space
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _windows(stream: Sequence[int], length: int) -> list[Sequence[int]]:
    return [stream[start : start + length] for start in range(0, len(stream), length)]
