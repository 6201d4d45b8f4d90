"""A speech model writes down what it hears, batch by batch; the sound of a batch is read when its turn comes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lillama.config import WerConfig
from lillama.core.errors import ConfigError
from lillama.data.utterances import KEY, Utterance, language_token
from lillama.evaluate.generation import now
from lillama.model.decoding import FiniteLogits

PROMPT = 4  # of Whisper, at most: start, language, task, no timestamps


@dataclass(slots=True)
class Heard:
    """The texts, and a number a batch: their tokens without special ones, seconds of generation, seconds of sound.

    ``cut`` counts the clips that are longer than the ``window`` in seconds that the model hears (None: any length).
    ``peak`` is the most memory that tensors held on the GPU meanwhile, in bytes; None without one.
    """

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sound: list[float] = field(default_factory=list)
    cut: int = 0
    window: float | None = None
    peak: int | None = None

    def speeds(self) -> dict[str, Any]:
        """Rates over all batches but the first, which warms up; of a single batch, over that."""
        counted = slice(1 if len(self.seconds) > 1 else 0, None)
        seconds = sum(self.seconds[counted])
        return {
            "seconds": sum(self.seconds),
            "tokens": sum(self.tokens),
            "tokens_per_second": sum(self.tokens[counted]) / seconds,
            "real_time_factor": sum(self.sound[counted]) / seconds,
            **({} if self.peak is None else {"peak_device_memory": self.peak}),
        }


def transcribe(
    model: Any, processor: Any, clips: Sequence[Utterance], config: WerConfig, *, progress: bool = False
) -> Heard:
    """Return every clip's text, greedily, in the order of the clips.

    :raises ConfigError: for a language or a length that the model does not have, or unreadable sound.
    :raises DivergedError: where logits are not finite.
    """
    options, device, heard = _options(model, config), model.device, Heard()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    bar = tqdm(total=len(clips), desc="wer", unit="clip", leave=False, disable=not progress)
    with torch.inference_mode(), bar:
        for start in range(0, len(clips), config.batch_size):
            batch = clips[start : start + config.batch_size]
            _hear(heard, model, processor, batch, options)
            bar.update(len(batch))
    if device.type == "cuda":
        heard.peak = torch.cuda.max_memory_allocated(device)
    return heard


def _options(model: Any, config: WerConfig) -> dict[str, Any]:
    """Make the options of generation: greedy, and as it does by itself in all else."""
    check_positions(model, config)
    options = {"max_new_tokens": config.max_new_tokens, "do_sample": False, "num_beams": 1}
    if hasattr(model.generation_config, "return_timestamps"):
        options["return_timestamps"] = False  # they would stand among the words
    return options if config.language is None else {**options, **_told(model, config.language)}


def check_positions(model: Any, config: WerConfig) -> None:
    """Raise a :class:`ConfigError` for texts longer than the model's decoder; one on the meta device will do."""
    positions = getattr(model.config, "max_target_positions", None)
    if positions is not None and config.max_new_tokens + PROMPT > positions:
        legal = f"the model's decoder has {positions} positions; give at most {positions - PROMPT}"
        raise ConfigError(f"{KEY}.max_new_tokens={config.max_new_tokens}: {legal}")


def _told(model: Any, language: str) -> dict[str, str]:
    own = model.generation_config
    known = getattr(own, "lang_to_id", None) if getattr(own, "is_multilingual", True) else None
    if not known:
        raise ConfigError(f"{KEY}.language={language}: the model is for one language only; give null")
    if language_token(language) not in known:
        raise ConfigError(f"{KEY}.language={language}: the model has no such language")
    return {"language": language, "task": "transcribe"}


def _hear(heard: Heard, model: Any, processor: Any, batch: Sequence[Utterance], options: dict[str, Any]) -> None:
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    sound = [clip.read(extractor.sampling_rate) for clip in batch]
    inputs = _features(extractor, sound, model)
    began = now(model.device)
    ids = model.generate(**inputs, **options, logits_processor=[FiniteLogits("wer")])
    heard.seconds.append(now(model.device) - began)
    ids = ids.cpu()
    heard.tokens.append(int((~torch.isin(ids, _special(tokenizer))).sum()))
    heard.texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    _note_lengths(heard, extractor, [len(samples) for samples in sound])


def _special(tokenizer: Any) -> Tensor:
    """Return the ids of the tokens that are no text: they are left out of it."""
    added = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return torch.tensor([*tokenizer.all_special_ids, *added])


def _features(extractor: Any, sound: Sequence[np.ndarray], model: Any) -> dict[str, Tensor]:
    """Extract what the model hears: in a fixed window where the extractor has one, else as long as the longest clip."""
    padding = {} if hasattr(extractor, "n_samples") else {"padding": True}
    rate = extractor.sampling_rate
    made = extractor(sound, sampling_rate=rate, return_tensors="pt", return_attention_mask=True, **padding)
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in made.items()
    }


def _note_lengths(heard: Heard, extractor: Any, lengths: Sequence[int]) -> None:
    """Lengths in samples."""
    rate, window = extractor.sampling_rate, getattr(extractor, "n_samples", None)
    kept = [length if window is None else min(length, window) for length in lengths]
    heard.window = None if window is None else window / rate
    heard.cut += sum(length > own for length, own in zip(lengths, kept, strict=True))
    heard.sound.append(sum(kept) / rate)
