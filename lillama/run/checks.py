"""Compare what a run would feed a model with the positions and tokens that the model has, before it is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lillama.config import EvaluateConfig, RunConfig, Source, Stage
from lillama.core.errors import ConfigError
from lillama.data.speech import SpeechClips
from lillama.model.limits import Limits


def check_length(key: str, asked: int, limit: int | None) -> None:
    """Raise a :class:`ConfigError` where a sequence is longer than the model has positions (None: any length goes)."""
    if limit is not None and asked > limit:
        raise ConfigError(f"{key}={asked}: the model has positions for {limit} tokens; give at most {limit}")


def check_tokens(key: str, ids: Any, limits: Limits, tokenizer: Any) -> None:
    """Raise a :class:`ConfigError` that names a token which the model has no embedding for.

    :param ids: those of real tokens only, any shape; padding needs no embedding.
    """
    flat = ids.numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    highest = int(flat.max()) if flat.size else 0
    if highest >= limits.tokens:
        known = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, its tokenizer
        word = known.convert_ids_to_tokens(highest)
        raise ConfigError(
            f"{key}: the tokenizer writes token {highest} ({word!r}), and the model has {limits.tokens} embeddings;"
            " give the model's own tokenizer (model.tokenizer), or leave the token out of the text"
        )


def check_calibration(key: str, data: Any, limits: Limits, tokenizer: Any) -> None:
    """Check the examples that a model is calibrated or fine-tuned on.

    :param key: the configuration group. :param data: blocks of tokens, or sound with its transcripts.
    :raises ConfigError: for tokens that the model does not know, or transcripts longer than its decoder.
    """
    if isinstance(data, SpeechClips):
        start = data.processor.tokenizer.bos_token_id  # what the decoder is given anyway takes no position
        longest = max(len(clip.ids) - (clip.ids[0] == start) for clip in data.clips)
        check_length(f"{key}.seq_len", longest, limits.written)
        check_tokens(key, [token for clip in data.clips for token in clip.ids], limits, tokenizer)
        return
    real = np.arange(data.ids.shape[1]) < data.lengths[:, None]
    check_tokens(key, data.ids[real], limits, tokenizer)


def check_settings(config: RunConfig, limits: Limits) -> None:
    """Check the lengths that need no text to be known: of calibration, throughput and stable ranks.

    :raises ConfigError: for one that is longer than the model has positions.
    """
    stages = set(config.stages)
    groups = [config.data] if config.calibrates or Stage.bench in stages else []
    groups += [config.finetune.data] if Stage.finetune in stages else []
    for data in groups:
        if data.source is not Source.speech:
            check_length(f"{data.KEY}.seq_len", data.seq_len, limits.text)
    if Stage.stable_rank in stages:
        check_length("evaluate.stable_rank.seq_len", config.evaluate.stable_rank.seq_len, limits.text)
    if Stage.throughput in stages:
        _check_throughput(config.evaluate, limits)


def _check_throughput(config: EvaluateConfig, limits: Limits) -> None:
    key, settings = "evaluate.throughput", config.throughput
    for length in settings.lengths:
        check_length(f"{key}.lengths", length, limits.text)
    if not settings.decode_batches:
        return
    if limits.two_stacks:
        check_length(f"{key}.prompt", settings.prompt, limits.positions)
        check_length(f"{key}.new_tokens", settings.new_tokens, limits.written)
    else:
        check_length(f"{key}.prompt + new_tokens", settings.prompt + settings.new_tokens, limits.positions)


def check_texts(
    config: RunConfig,
    limits: Limits,
    tokenizer: Any,
    *,
    text: Any = None,
    domains: Mapping[str, Any] | None = None,
    prompts: Sequence[Any] = (),
) -> None:
    """Check the texts that a model is measured on; of a short one only its own length counts.

    :param text: of the perplexity, or None. :param domains: by name. :param prompts: the token ids of each sample.
    :raises ConfigError: for windows longer than the model has positions, or tokens that it does not know.
    """
    evaluate = config.evaluate
    if text is not None:
        if Stage.perplexity in config.stages:
            check_length("evaluate.perplexity.seq_len", min(evaluate.perplexity.seq_len, len(text)), limits.text)
        check_tokens("evaluate.perplexity", text.ids, limits, tokenizer)
    for name, own in (domains or {}).items():
        key = f"evaluate.domains.texts.{name}"
        check_length(f"{key}.seq_len", min(evaluate.domains.texts[name].seq_len, len(own)), limits.text)
        check_tokens(key, own.ids, limits, tokenizer)
    for ids in prompts:
        check_tokens("evaluate.samples.prompts", ids, limits, tokenizer)
