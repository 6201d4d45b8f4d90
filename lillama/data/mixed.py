"""Interleave the blocks of several texts by their shares; make the blocks of any text, however it comes about."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from lillama.config import DataConfig, GeneratedDataConfig, MixedDataConfig, PartConfig, Source, TextConfig
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest
from lillama.data.generated import Writer, generated_blocks
from lillama.data.sources import source_identity
from lillama.data.texts import NOTHING_LEFT_OUT
from lillama.data.tokens import TokenBlocks, token_blocks

OWN = ("packing", "order", "template", "system", "join", "seed")  # what a part may say otherwise than the whole


def text_blocks(config: DataConfig, tokenizer: Any, cache: Cache, writer: Writer) -> TokenBlocks:
    """Make the blocks of a text: read, mixed, or written by the dense model; from the cache where it has them.

    :raises ConfigError: for unreadable data, or data (of a mix, a part) with fewer tokens than are asked for.
    """
    made = _blocks(config, tokenizer, cache, writer)
    return replace(made, mask_token=getattr(tokenizer, "mask_token_id", None))


def _blocks(config: DataConfig, tokenizer: Any, cache: Cache, writer: Writer) -> TokenBlocks:
    if isinstance(config, MixedDataConfig):
        made = {name: text_blocks(part, tokenizer, cache, writer) for name, part in parts_of(config).items()}
        return interleaved(list(made.values()))
    if isinstance(config, GeneratedDataConfig):
        return generated_blocks(config, tokenizer, cache, writer)
    return token_blocks(config, tokenizer, cache)


def data_identity(config: DataConfig) -> str | None:
    """Hash the rows, without their paths; None where the dense model writes them, which has an identity of its own."""
    if isinstance(config, MixedDataConfig):
        return digest({name: _identity(part, f"{config.KEY}.parts.{name}") for name, part in config.parts.items()})
    return _identity(config, config.KEY)


def _identity(config: TextConfig, key: str) -> str | None:
    return None if config.source is Source.generated else source_identity(config, key)


def parts_of(config: MixedDataConfig) -> dict[str, DataConfig]:
    """Make every part of a mix a text of its own with exactly its share of the tokens, in the order of their names.

    :raises ConfigError: for a part whose share comes to no block.
    """
    assert config.tokens is not None
    shares = {name: config.parts[name].share for name in sorted(config.parts)}
    found = {}
    for name, tokens in shared_out(config.tokens, shares, config.seq_len).items():
        key = f"{config.KEY}.parts.{name}"
        if not tokens:
            whole = f"{config.KEY}.tokens={config.tokens} with {config.KEY}.seq_len={config.seq_len}"
            raise ConfigError(f"{key}.share={shares[name]}: comes to no block of {whole}")
        found[name] = _part(config, config.parts[name], tokens, key)
    return found


def shared_out(tokens: int, shares: Mapping[str, float], seq_len: int) -> dict[str, int]:
    """Share out exactly ``tokens`` in whole blocks but for one, each part within a block of its share."""
    wanted = {name: share * tokens / sum(shares.values()) for name, share in shares.items()}
    given = {name: int(value) // seq_len * seq_len for name, value in wanted.items()}
    while left := tokens - sum(given.values()):
        short = max(wanted, key=lambda name: wanted[name] - given[name])
        given[short] += min(left, seq_len)
    return given


def interleaved(parts: list[TokenBlocks]) -> TokenBlocks:
    """Spread the blocks of each part evenly over the whole, so that any number of first blocks is mixed alike.

    A block stands where its middle lies in its own part, as a share of that part's tokens; the order within a part
    stays, and of blocks that stand alike the earlier part's comes first.
    """
    places = [(part.lengths.cumsum() - part.lengths / 2) / part.tokens for part in parts]
    order = np.argsort(np.concatenate(places), kind="stable")
    ids, lengths = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("ids", "lengths"))
    return TokenBlocks(ids, lengths, sum((part.counts for part in parts), NOTHING_LEFT_OUT))


def _part(config: MixedDataConfig, part: PartConfig, tokens: int, key: str) -> DataConfig:
    values = {each.name: getattr(part, each.name) for each in fields(TextConfig)}
    for name in OWN:
        own = getattr(part, name)
        values[name] = getattr(config, name) if own is None else own
    sizes = {"tokens": tokens, "seq_len": config.seq_len}
    if part.source is Source.generated:
        return _named(GeneratedDataConfig, key)(**values, **sizes, write=part.write)
    return _named(DataConfig, key)(**values, **sizes)


def _named(schema: type[DataConfig], key: str) -> Callable[..., DataConfig]:
    """Derive a schema whose errors name the part."""
    return type(schema.__name__, (schema,), {"KEY": key, "__slots__": ()})
