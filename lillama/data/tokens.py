"""Calibration text as fixed-length blocks of tokens: an exact budget, a seeded order, a content hash, a cache."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from lillama.config import DataConfig
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest
from lillama.data.packing import Pieces, pieces
from lillama.data.rows import Row
from lillama.data.sources import read_rows, source_identity
from lillama.data.texts import NOTHING_LEFT_OUT, RowCounts, RowTexts
from lillama.model.inputs import Batch

CACHE_FORMAT = 2
KIND = "tokens"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenBlocks:
    """Blocks of token ids [n, seq_len], of which the first ``lengths`` [n] are real and the rest is padding.

    ``mask_token`` is the tokenizer's, for masked language models; None where it has none.
    """

    ids: np.ndarray
    lengths: np.ndarray
    counts: RowCounts = NOTHING_LEFT_OUT
    mask_token: int | None = None

    @property
    def tokens(self) -> int:
        """Count the real tokens of the blocks."""
        return int(self.lengths.sum())

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the token stream."""
        parts = (self.ids.astype("<i4").tobytes(), self.lengths.astype("<i4").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def head(self, tokens: int) -> "TokenBlocks":
        """Return the first blocks, as many as it takes to hold at least ``tokens`` tokens, or all."""
        enough = int(np.searchsorted(self.lengths.cumsum(), tokens)) + 1
        return replace(self, ids=self.ids[:enough], lengths=self.lengths[:enough])

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
    """Return the blocks of a calibration text, from the cache where it has them; of several processes, one makes them.

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
        counts = np.array(list(blocks.counts.as_dict().values()))
        cache.write(KIND, key, save({"ids": blocks.ids, "lengths": blocks.lengths, "counts": counts}))
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
    """Make blocks of rows, with ``config.tokens`` real tokens or as many as there are.

    Only the rows that this takes are read: they are drawn in an order that ``config.seed`` gives.

    :raises ConfigError: for rows without a token.
    """
    key, template, system = config.KEY, config.template, config.system
    texts = RowTexts(rows, tokenizer, template=template, system=system, invalid=config.invalid_rows, key=key)
    taken = _take(pieces(config, texts, tokenizer), config.budget)
    counts = texts.counts
    if not taken:
        skipped = f" ({counts.skipped_rows} rows were skipped)" if counts.skipped_rows else ""
        raise ConfigError(f"{config.KEY}: the texts hold no token{skipped}")
    if any(counts.as_dict().values()):
        told = (config.KEY, counts.skipped_rows, counts.replaced_characters)
        log.warning("%s: %d invalid rows skipped, %d characters replaced", *told)
    return _padded(taken, config.seq_len, pad=_pad_id(tokenizer), counts=counts)


def _cache_key(config: DataConfig, tokenizer: Any) -> str:
    options = {key: value.name if isinstance(value, Enum) else value for key, value in asdict(config).items()}
    del options["path"]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    identity = [vocabulary, getattr(tokenizer, "chat_template", None)]
    return digest([CACHE_FORMAT, source_identity(config, config.KEY), options, identity])[:32]


def _load(file: Path) -> TokenBlocks:
    held = load_file(file)
    return TokenBlocks(held["ids"], held["lengths"], RowCounts(*map(int, held["counts"])))


def _take(pieces: Pieces, tokens: int) -> list[Sequence[int]]:
    """Pieces until the budget is met; the last is cut so that it is met exactly."""
    taken: list[Sequence[int]] = []
    left = tokens
    for piece in pieces:
        taken.append(piece[:left])
        left -= len(taken[-1])
        if left == 0:
            break
    return taken


def _padded(pieces: Sequence[Sequence[int]], length: int, *, pad: int, counts: RowCounts) -> TokenBlocks:
    ids = np.full((len(pieces), length), pad, dtype=np.int32)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = piece
    return TokenBlocks(ids, np.array([len(piece) for piece in pieces], dtype=np.int32), counts)


def _pad_id(tokenizer: Any) -> int:
    return next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
