"""Perplexity as the field measures it: the whole text in non-overlapping windows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lillama.config import PerplexityConfig, Template
from lillama.core.errors import ConfigError, DivergedError
from lillama.data.encode import BORDER, CHARACTERS_A_TOKEN
from lillama.data.sources import read_rows
from lillama.data.texts import NOTHING_LEFT_OUT, RowCounts, RowTexts
from lillama.model.inputs import Batch, model_inputs
from lillama.model.limits import Limits, check_length


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """The token ids [n] of a text, and how many bytes of UTF-8 they stand for."""

    ids: Tensor
    bytes: int
    counts: RowCounts = NOTHING_LEFT_OUT

    def __len__(self) -> int:
        return len(self.ids)

    def bits_per_byte(self, perplexity: float) -> float:
        """Convert a perplexity of this text to bits per byte, by which models with other tokenizers can be compared.

        The mean over the predicted tokens stands for all n: of each window the first is not predicted.
        """
        return math.log2(perplexity) * len(self.ids) / self.bytes


def measured_text(config: PerplexityConfig, tokenizer: Any, key: str = "evaluate.perplexity") -> MeasuredText:
    """Return a text as tokens: its rows joined by blank lines, cut at ``max_tokens``.

    Of a long text only as much is read as the cut needs.

    :raises ConfigError: for unreadable text, or fewer than two tokens.
    """
    rows = read_rows(config, key)
    texts = RowTexts(rows, tokenizer, template=Template.none, invalid=config.invalid_rows, key=key)
    characters = None if config.max_tokens is None else CHARACTERS_A_TOKEN * config.max_tokens
    while True:
        text, whole = _beginning(texts, characters)
        ids = tokenizer(text, verbose=False)["input_ids"]
        # Of a text that was cut, the last tokens may be others than those of the whole.
        if whole or len(ids) >= (config.max_tokens or 0) + BORDER:
            break
        characters = 2 * (characters or 0)
    kept = torch.tensor(ids[: config.max_tokens], dtype=torch.long)
    if len(kept) < 2:
        raise ConfigError(f"{key}.path={config.path}: holds fewer than two tokens")
    uncut = whole and len(kept) == len(ids)
    read = text if uncut else _text_of(kept, text, tokenizer)
    return MeasuredText(kept, len(read.encode()), texts.counts)


def check_window(settings: PerplexityConfig, text: MeasuredText, limits: Limits, key: str) -> None:
    """Raise a :class:`ConfigError` for windows that are too long for the model; of a short text its length counts."""
    check_length(f"{key}.seq_len", min(settings.seq_len, len(text)), limits.text)


def _beginning(texts: RowTexts, characters: int | None) -> tuple[str, bool]:
    """Join the first rows by blank lines, until they hold so many characters (None: all); and whether that is all."""
    parts: list[str] = []
    held = 0
    for row in texts:
        if characters is not None and held >= characters:
            return "\n\n".join(parts), False
        parts.append(row.text if characters is None else row.text[: characters - held])
        if len(parts[-1]) < len(row.text):
            return "\n\n".join(parts), False
        held += len(row.text) + 2
    return "\n\n".join(parts), True


def _text_of(kept: Tensor, text: str, tokenizer: Any) -> str:
    """Return the part of a text that its first tokens stand for."""
    if getattr(tokenizer, "is_fast", False):
        ends = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return text[: ends[len(kept) - 1][1]]
    return tokenizer.decode(kept, skip_special_tokens=True)


def text_perplexity(
    model: nn.Module, text: MeasuredText, settings: PerplexityConfig, *, progress: bool = False
) -> float:
    """Return the perplexity of a text, measured as its settings say."""
    return perplexity(
        model,
        text.ids,
        seq_len=settings.seq_len,
        stride=settings.stride,
        batch_size=settings.batch_size,
        progress=progress,
    )


def perplexity(
    model: nn.Module,
    ids: Tensor,
    *,
    seq_len: int,
    stride: int | None = None,
    batch_size: int = 1,
    progress: bool = False,
) -> float:
    """exp of the mean negative log-likelihood over every predicted token, in float32 logits.

    The text is cut into windows of ``seq_len`` (the last may be shorter); in each, every token but the first is
    predicted from those before it, so a window of n tokens counts n - 1 times. An encoder-decoder reads the first half
    of a window and predicts the second. With a ``stride``, windows overlap: each begins ``stride`` tokens after the one
    before and counts only the tokens that came into no window before it.

    :param model: a model that predicts the next token, in evaluation mode. :param ids: token ids [n].
    :raises DivergedError: where a window's likelihood is not finite.

    A model that knows nothing is as unsure as its vocabulary is large:

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()
    >>> _ = torch.nn.init.zeros_(model.lm_head.weight)
    >>> round(perplexity(model, torch.arange(40), seq_len=16), 2)
    50.0
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with (
        torch.inference_mode(),
        tqdm(total=len(ids), desc="perplexity", unit="tok", leave=False, disable=not progress) as bar,
    ):
        for batch in _batches(windows(len(ids), seq_len, stride), batch_size):
            stacked = torch.stack([ids[window.start : window.stop] for window in batch]).to(device)
            loss, predicted = window_loss(model, stacked, skip=batch[0].skip)
            if not math.isfinite(loss):
                raise DivergedError(f"perplexity: the likelihood of the tokens from {batch[0].start} on is {loss}")
            total, count = total + loss, count + predicted
            bar.update(sum(window.new for window in batch))
    try:
        return math.exp(total / count)
    except OverflowError:
        raise DivergedError(f"perplexity: exp of a mean loss of {total / count:.1f} is not finite") from None


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens from ``start`` to before ``stop``; those before ``fresh`` came into a window before this one."""

    start: int
    stop: int
    fresh: int

    @property
    def new(self) -> int:
        """Count the tokens that no window before this one had."""
        return self.stop - self.fresh

    @property
    def skip(self) -> int:
        """Count the predictions in it that do not count; the first token is never predicted."""
        return max(self.fresh - self.start - 1, 0)


def windows(tokens: int, seq_len: int, stride: int | None = None) -> list[Window]:
    """Return the windows of a text of this many tokens; one that would predict nothing is left out.

    >>> [(window.start, window.stop) for window in windows(10, 4)]
    [(0, 4), (4, 8), (8, 10)]
    """
    found: list[Window] = []
    start = fresh = 0
    while fresh < tokens:
        stop = min(start + seq_len, tokens)
        if stop - start > 1:
            found.append(Window(start, stop, fresh))
        start, fresh = start + (stride or seq_len), stop
    return found


def _batches(found: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """At most ``size`` windows at a time, alike in length and in what counts."""
    for _, alike in groupby(found, key=lambda window: (window.stop - window.start, window.skip)):
        while batch := list(islice(alike, size)):
            yield batch


def window_loss(model: nn.Module, ids: Tensor, *, skip: int = 0) -> tuple[float, int]:
    """Return the summed negative log-likelihood of the windows ids [b, t], and over how many tokens.

    :param skip: how many predictions at the beginning of each do not count.
    """
    inputs = model_inputs(model, Batch(ids))
    logits, targets = model(**inputs.arguments).logits, inputs.targets
    if targets is None:
        logits, targets = logits[:, :-1], ids[:, 1:]
    logits, targets = logits[:, skip:], targets[:, skip:]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return loss.item(), int((targets != -100).sum())
