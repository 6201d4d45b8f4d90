"""Sample calibration text from the model itself, and keep it by content."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from lillama.config import (
    DataConfig,
    GeneratedDataConfig,
    MixedDataConfig,
    Opening,
    Source,
    Task,
    Weights,
)
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest
from lillama.data.tokens import TokenBlocks, kept_blocks
from lillama.model.decoding import FiniteLogits, seeded, settings_alone
from lillama.model.source import ModelSource

WRITTEN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Writer:
    """Loads the model that writes text, where there is none in the cache; ``seed`` is that of random weights."""

    source: ModelSource
    seed: int
    load: Callable[[], Any]
    progress: bool = False

    @property
    def identity(self) -> list[Any]:
        """Name what its texts depend on, beside the settings of a text: its weights, dtype and kind of device."""
        source = self.source
        drawn = self.seed if source.config.weights is Weights.random else None
        return [source.identity, source.config.revision, str(source.dtype), source.device.type, drawn]


def writes(config: DataConfig) -> bool:
    """Tell whether any of a text is written by the dense model."""
    parts = config.parts.values() if isinstance(config, MixedDataConfig) else [config]
    return any(part.source is Source.generated for part in parts)


def check_written(config: DataConfig, name: str, task: Task, positions: int | None) -> None:
    """Raise a :class:`ConfigError` where a model cannot write the blocks that are asked for.

    :param name: of the model. :param positions: how many tokens it can tell apart by their place; None: any number.
    """
    if task is not Task.causal_lm:
        kind = f"{name} is a {task.name} model and writes no text by itself"
        raise ConfigError(f"{config.KEY}.source=generated: {kind}; give a text")
    if positions is not None and config.seq_len > positions:
        raise ConfigError(f"{config.KEY}.seq_len={config.seq_len}: {name} writes at most {positions} tokens in a row")


def generated_blocks(config: GeneratedDataConfig, tokenizer: Any, cache: Cache, writer: Writer) -> TokenBlocks:
    """Make blocks with exactly ``config.tokens`` tokens, from the cache or by the model, which is loaded only then.

    A text that ends is followed by another, as rows are that are packed: no block is padded but the last. On a CPU the
    same configuration writes the same text every time.

    :raises ConfigError: for a tokenizer without the token to begin with.
    :raises DivergedError: where logits are not finite.
    """
    assert config.tokens is not None
    openings = _openings(config, tokenizer, -(-config.tokens // config.seq_len))
    write, sizes = config.write, [config.tokens, config.seq_len, config.seed]
    asked = [*sizes, write.temperature, write.batch_size, openings.tolist()]
    key = digest([WRITTEN_FORMAT, *writer.identity, *asked])[:32]

    def make() -> TokenBlocks:
        ids = _written(writer.load(), openings, config, progress=writer.progress)
        lengths = np.full(len(ids), config.seq_len, dtype=np.int32)
        lengths[-1] -= len(ids) * config.seq_len - config.budget
        return TokenBlocks(ids, lengths)

    return kept_blocks(cache, key, make)


def _openings(config: GeneratedDataConfig, tokenizer: Any, count: int) -> Tensor:
    """Choose the tokens that each text begins with [n, 1 or 2]."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    begin = torch.full((count, 0 if first is None else 1), first or 0)
    if config.write.opening is Opening.token:
        special = {index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        ordinary = sorted(set(tokenizer.get_vocab().values()) - special - set(tokenizer.all_special_ids))
        drawn = np.random.default_rng(config.seed).choice(ordinary, count)
        return torch.cat([begin, torch.from_numpy(drawn)[:, None]], dim=1)
    if first is None:
        legal = "the tokenizer knows no token that begins or ends a text; give token"
        raise ConfigError(f"{config.KEY}.write.opening=bos: {legal}")
    return begin


def _written(model: Any, openings: Tensor, config: GeneratedDataConfig, *, progress: bool) -> np.ndarray:
    """Write the blocks [n, seq_len] that follow from their openings."""
    length, size = config.seq_len, config.write.batch_size
    if openings.shape[1] >= length:
        return openings[:, :length].numpy().astype(np.int32)
    found = []
    bar = tqdm(total=len(openings) * length, desc="write", unit="tok", disable=not progress)
    settings = _settings(config, length - openings.shape[1])
    with settings_alone(model, settings), seeded(model.device, config.seed), torch.inference_mode(), bar:
        for start in range(0, len(openings), size):
            ids = openings[start : start + size].to(model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=[FiniteLogits(config.KEY)],
            )
            found.append(output.cpu().numpy().astype(np.int32))
            bar.update(output.numel())
    return np.concatenate(found)


def _settings(config: GeneratedDataConfig, new: int) -> GenerationConfig:
    """Sample from the whole distribution at the temperature, with no token that ends a text."""
    return GenerationConfig(
        max_new_tokens=new,
        do_sample=True,
        temperature=config.write.temperature,
        top_k=0,
        top_p=1.0,
        num_beams=1,
        use_cache=True,
        disable_compile=True,  # one shape a batch, never seen again
        pad_token_id=0,  # never written
    )
