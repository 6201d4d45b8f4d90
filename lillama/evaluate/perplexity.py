"""Perplexity as the field measures it: the whole text in non-overlapping windows."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lillama.config import PerplexityConfig, SystemTurns, Template
from lillama.data.rows import row_text
from lillama.data.sources import read_rows
from lillama.errors import ConfigError, DivergedError
from lillama.model.inputs import Batch, model_inputs


def perplexity_ids(config: PerplexityConfig, tokenizer: Any) -> Tensor:
    """The token ids [n] of a text: its rows joined by blank lines, cut at ``max_tokens``.

    :raises ConfigError: for unreadable text, or fewer than two tokens.
    """
    rows = read_rows(config, "evaluate.perplexity")
    text = "\n\n".join(row_text(row, tokenizer, Template.none, SystemTurns.keep) for row in rows)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)[: config.max_tokens]
    if len(ids) < 2:
        raise ConfigError(f"evaluate.perplexity.path={config.path}: holds fewer than two tokens")
    return ids


def perplexity(
    model: nn.Module,
    ids: Tensor,
    *,
    seq_len: int,
    batch_size: int = 1,
    desc: str = "perplexity",
    progress: bool = False,
) -> float:
    """exp of the mean negative log-likelihood over every predicted token, in float32 logits.

    The text is cut into windows of ``seq_len`` (the last may be shorter); in each, every token but the first is
    predicted from those before it, so a window of n tokens counts n - 1 times. An encoder-decoder reads the first half
    of a window and predicts the second.

    :param model: a model that predicts the next token, in evaluation mode. :param ids: token ids [n].
    :raises DivergedError: where a window's likelihood is not finite.
    """
    device = next(model.parameters()).device
    whole = len(ids) // seq_len * seq_len
    batches = list(ids[:whole].view(-1, seq_len).split(batch_size)) if whole else []
    if len(ids) - whole > 1:
        batches.append(ids[whole:][None])
    total, count = 0.0, 0
    with torch.inference_mode(), tqdm(total=len(ids), desc=desc, unit="tok", leave=False, disable=not progress) as bar:
        for batch in batches:
            loss, predicted = window_loss(model, batch.to(device))
            if not math.isfinite(loss):
                raise DivergedError(f"perplexity: the likelihood of the tokens from {bar.n} on is {loss}")
            total, count = total + loss, count + predicted
            bar.update(batch.numel())
    try:
        return math.exp(total / count)
    except OverflowError:
        raise DivergedError(f"perplexity: exp of a mean loss of {total / count:.1f} is not finite") from None


def window_loss(model: nn.Module, ids: Tensor) -> tuple[float, int]:
    """The summed negative log-likelihood of the windows ids [b, t], and over how many tokens."""
    inputs = model_inputs(model, Batch(ids))
    logits, targets = model(**inputs.arguments).logits, inputs.targets
    if targets is None:
        logits, targets = logits[:, :-1], ids[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return loss.item(), int((targets != -100).sum())
