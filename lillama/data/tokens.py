"""Calibration text as fixed-length blocks of tokens: an exact budget, a seeded order, a content hash, a cache."""

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from lillama.cache import Cache
from lillama.config import DataConfig, Join, Order, Packing
from lillama.data.rows import is_plain, row_text, uses_template
from lillama.data.sources import Row, read_rows, source_identity
from lillama.errors import ConfigError
from lillama.model.inputs import Batch
from lillama.provenance import digest

CACHE_FORMAT = 1
KIND = "tokens"


@dataclass(frozen=True, slots=True)
class TokenBlocks:
    """Blocks of token ids [n, seq_len], of which the first ``lengths`` [n] are real and the rest is padding."""

    ids: np.ndarray
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        """How many real tokens the blocks hold."""
        return int(self.lengths.sum())

    @property
    def hash(self) -> str:
        """SHA-256 of the token stream."""
        parts = (self.ids.astype("<i4").tobytes(), self.lengths.astype("<i4").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def head(self, tokens: int) -> "TokenBlocks":
        """The first blocks, as many as it takes to hold at least ``tokens`` tokens, or all."""
        enough = int(np.searchsorted(self.lengths.cumsum(), tokens)) + 1
        return TokenBlocks(self.ids[:enough], self.lengths[:enough])

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, device: torch.device | str) -> Iterator[Batch]:
        """Batches of at most ``size`` blocks."""
        for start in range(0, len(self.ids), size):
            ids = torch.from_numpy(self.ids[start : start + size].astype(np.int64)).to(device)
            lengths = torch.from_numpy(self.lengths[start : start + size].astype(np.int64)).to(device)
            full = bool((lengths == ids.shape[1]).all())
            yield Batch(ids, None if full else torch.arange(ids.shape[1], device=device) < lengths[:, None])


def token_blocks(config: DataConfig, tokenizer: Any, cache: Cache) -> TokenBlocks:
    """The blocks of a calibration text, from the cache where it has them; of several processes, one makes them.

    :raises ConfigError: for unreadable data, or data with fewer tokens than ``config.tokens``.
    """

    def make() -> TokenBlocks:
        return build_blocks(config, read_rows(config, config.KEY), tokenizer)

    return kept_blocks(cache, _cache_key(config, tokenizer), make)


def kept_blocks(cache: Cache, key: str, make: Callable[[], TokenBlocks]) -> TokenBlocks:
    """Read the blocks of a key from the cache, or make and keep them; of several processes, one makes them."""
    held = cache.read(KIND, key, _load)
    if held is not None:
        return held
    with cache.lock(key, "the same tokens"):
        held = cache.read(KIND, key, _load)
        if held is not None:
            return held
        blocks = make()
        cache.write(KIND, key, save({"ids": blocks.ids, "lengths": blocks.lengths}))
    return blocks


def build_blocks(config: DataConfig, rows: Sequence[Row], tokenizer: Any) -> TokenBlocks:
    """Rows into blocks, with exactly ``config.tokens`` real tokens (null: all that there are).

    :raises ConfigError: for rows that hold fewer.
    """
    blocks = blocks_up_to(config, rows, tokenizer)
    if config.tokens is not None and blocks.tokens < config.tokens:
        raise ConfigError(f"{config.KEY}.tokens={config.tokens}: the data holds only {blocks.tokens} tokens")
    return blocks


def blocks_up_to(config: DataConfig, rows: Sequence[Row], tokenizer: Any) -> TokenBlocks:
    """Rows into blocks, with ``config.tokens`` real tokens or as many as there are.

    :raises ConfigError: for rows without a token.
    """
    if config.packing is Packing.padded:
        pieces = _take(_rows_cut(config, rows, tokenizer), config.budget)
    elif rows and _join(config, rows[0], tokenizer) is Join.blank_line:
        pieces = _take(_shuffled_windows(config, rows, tokenizer), config.budget)
    else:
        pieces = _windows(_stream(config, rows, tokenizer), config.seq_len) if rows else []
    if not pieces:
        raise ConfigError(f"{config.KEY}: the texts hold no token")
    return _padded(pieces, config.seq_len, pad=_pad_id(tokenizer))


def _cache_key(config: DataConfig, tokenizer: Any) -> str:
    options = {key: value.name if isinstance(value, Enum) else value for key, value in asdict(config).items()}
    del options["path"]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    identity = [vocabulary, getattr(tokenizer, "chat_template", None)]
    return digest([CACHE_FORMAT, source_identity(config, config.KEY), options, identity])[:32]


def _load(file: Path) -> TokenBlocks:
    held = load_file(file)
    return TokenBlocks(held["ids"], held["lengths"])


def _encode(text: str, tokenizer: Any, *, templated: bool) -> list[int]:
    """Token ids; a chat template writes its own special tokens, so none are added to its text (no doubled BOS)."""
    return tokenizer(text, add_special_tokens=not templated, verbose=False)["input_ids"]


def _row_ids(config: DataConfig, row: Row, tokenizer: Any) -> list[int]:
    templated = not is_plain(row) and uses_template(tokenizer, config.template)
    return _encode(row_text(row, tokenizer, config.template, config.system), tokenizer, templated=templated)


def _join(config: DataConfig, row: Row, tokenizer: Any) -> Join:
    if config.join is not Join.auto:
        return config.join
    if is_plain(row):
        return Join.blank_line
    return Join.none if uses_template(tokenizer, config.template) else Join.eos


def _ordered(config: DataConfig, count: int) -> list[int]:
    order = list(range(count))
    if config.order is Order.shuffled:
        random.Random(config.seed).shuffle(order)
    return order


def _rows_cut(config: DataConfig, rows: Sequence[Row], tokenizer: Any) -> Iterator[list[int]]:
    """Rows one by one, cut at seq_len."""
    encoded = (_row_ids(config, rows[index], tokenizer) for index in _ordered(config, len(rows)))
    ids = sorted(encoded, key=len, reverse=True) if config.order is Order.longest_first else encoded
    return (row[: config.seq_len] for row in ids if row)


def _stream(config: DataConfig, rows: Sequence[Row], tokenizer: Any) -> Sequence[int]:
    """Rows one after the other until the budget is met; 4 bytes a token, since a text may be taken whole."""
    join = _join(config, rows[0], tokenizer)
    between = [tokenizer.eos_token_id] if join is Join.eos and tokenizer.eos_token_id is not None else []
    order = _ordered(config, len(rows))
    if config.order is Order.longest_first:
        order.sort(key=lambda index: -len(row_text(rows[index], tokenizer, config.template, config.system)))
    stream = array("i")
    for index in order:
        stream.extend(_row_ids(config, rows[index], tokenizer) + between)
        if len(stream) >= config.budget:
            break
    return stream[: config.budget]


def _shuffled_windows(config: DataConfig, rows: Sequence[Row], tokenizer: Any) -> Iterator[Sequence[int]]:
    """Plain text joined by blank lines, cut into windows; the windows are shuffled, since the rows belong together."""
    text = "\n\n".join(row_text(row, tokenizer, config.template, config.system) for row in rows)
    windows = _windows(_encode(text, tokenizer, templated=False), config.seq_len)
    tail = windows.pop() if windows and len(windows[-1]) < config.seq_len else None
    for index in _ordered(config, len(windows)):
        yield windows[index]
    if tail is not None:
        yield tail


def _windows(stream: Sequence[int], length: int) -> list[Sequence[int]]:
    return [stream[start : start + length] for start in range(0, len(stream), length)]


def _take(pieces: Iterator[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Pieces until the budget is met; the last is cut so that it is met exactly."""
    taken: list[Sequence[int]] = []
    left = tokens
    for piece in pieces:
        taken.append(piece[:left])
        left -= len(taken[-1])
        if left == 0:
            break
    return taken


def _padded(pieces: Sequence[Sequence[int]], length: int, *, pad: int) -> TokenBlocks:
    ids = np.full((len(pieces), length), pad, dtype=np.int32)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = piece
    return TokenBlocks(ids, np.array([len(piece) for piece in pieces], dtype=np.int32))


def _pad_id(tokenizer: Any) -> int:
    return next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
