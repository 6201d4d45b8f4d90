"""Calibration for speech models: sound files with their transcripts, read as they are needed."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lillama.config import DataConfig, Order
from lillama.core.errors import ConfigError
from lillama.core.provenance import path_digest
from lillama.data.sound import read_sound, transcripts
from lillama.data.texts import NOTHING_LEFT_OUT, RowCounts
from lillama.model.inputs import Batch


@dataclass(frozen=True, slots=True)
class Clip:
    """One sound file and the token ids of its transcript."""

    file: Path
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpeechClips:
    """Clips in a fixed order; the sound of a batch is read and made into features when the batch is."""

    clips: tuple[Clip, ...]
    processor: Any
    key: str  # the configuration group, for errors

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def tokens(self) -> int:
        """Count the tokens of the transcripts."""
        return sum(len(clip.ids) for clip in self.clips)

    @property
    def counts(self) -> RowCounts:
        """None: a clip that cannot be read is refused."""
        return NOTHING_LEFT_OUT

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the sound and the token ids."""
        parts = [path_digest(clip.file) + json.dumps(clip.ids) for clip in self.clips]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def head(self, tokens: int) -> "SpeechClips":
        """Return the first clips, as many as it takes to hold at least ``tokens`` tokens, or all."""
        return replace(self, clips=_until(self.clips, tokens))

    def batches(self, size: int, device: torch.device | str) -> Iterator[Batch]:
        """Batches of at most ``size`` clips."""
        for start in range(0, len(self.clips), size):
            clips = self.clips[start : start + size]
            length = max(len(clip.ids) for clip in clips)
            lengths = torch.tensor([len(clip.ids) for clip in clips], device=device)
            ids = torch.tensor([[*clip.ids, *[clip.ids[-1]] * (length - len(clip.ids))] for clip in clips])
            mask = torch.arange(length, device=device) < lengths[:, None]
            yield Batch(ids.to(device), None if bool(mask.all()) else mask, self._features(clips).to(device))

    def _features(self, clips: Sequence[Clip]) -> torch.Tensor:
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        sound = [read_sound(clip.file, rate, key=self.key, name=str(clip.file)) for clip in clips]
        return extractor(sound, sampling_rate=rate, return_tensors="pt").input_features


def speech_clips(config: DataConfig, processor: Any) -> SpeechClips:
    """Return the clips of a folder in the configured order, until their transcripts hold ``config.tokens`` tokens
    (null: all).

    :func:`lillama.data.sound.transcripts` says what the folder holds. Transcripts are cut at ``config.seq_len`` tokens.

    :raises ConfigError: for a folder without transcripts, a missing file, or fewer tokens than ``config.tokens``.
    """
    key = config.KEY
    if not hasattr(processor, "feature_extractor"):
        raise ConfigError(f"{key}.source=speech: the model has no processor with a feature extractor; give its folder")
    rows = list(transcripts(Path(str(config.path)).expanduser(), key))
    if config.order is Order.shuffled:
        random.Random(config.seed).shuffle(rows)
    clips = []
    for file, text in rows:
        ids = processor.tokenizer(text).input_ids[: config.seq_len]
        if ids:
            clips.append(Clip(file, tuple(ids)))
    if config.order is Order.longest_first:
        clips.sort(key=lambda clip: -len(clip.ids))
    kept = _until(clips, config.budget)
    held = sum(len(clip.ids) for clip in kept)
    if not kept or (config.tokens is not None and held < config.tokens):
        raise ConfigError(f"{key}.tokens={config.tokens}: the transcripts hold only {held} tokens")
    for clip in kept:
        if not clip.file.is_file():
            raise ConfigError(f"{key}.path={config.path}: {clip.file.name} has a transcript and is not there")
    return SpeechClips(tuple(kept), processor, key)


def _until(clips: Sequence[Clip], tokens: int) -> tuple[Clip, ...]:
    ends = np.cumsum([len(clip.ids) for clip in clips])
    return tuple(clips[: int(np.searchsorted(ends, tokens)) + 1])
