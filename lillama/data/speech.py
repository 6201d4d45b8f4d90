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
from lillama.data.rows import TEXT_COLUMNS
from lillama.errors import ConfigError
from lillama.model.inputs import Batch
from lillama.provenance import path_digest

METADATA = "metadata.jsonl"
TRANSCRIPT_COLUMNS = ("transcription", "transcript", "sentence", *TEXT_COLUMNS)


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

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def tokens(self) -> int:
        """How many tokens the transcripts hold."""
        return sum(len(clip.ids) for clip in self.clips)

    @property
    def hash(self) -> str:
        """SHA-256 of the sound and the token ids."""
        parts = [path_digest(clip.file) + json.dumps(clip.ids) for clip in self.clips]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def head(self, tokens: int) -> "SpeechClips":
        """The first clips, as many as it takes to hold at least ``tokens`` tokens, or all."""
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
        sound = [_read_sound(clip.file, rate) for clip in clips]
        return extractor(sound, sampling_rate=rate, return_tensors="pt").input_features


def speech_clips(config: DataConfig, processor: Any) -> SpeechClips:
    """The clips of a folder in the configured order, until their transcripts hold ``data.tokens`` tokens.

    The folder holds ``metadata.jsonl`` (``file_name`` and a transcript a line, as Hugging Face's audio folders do), or
    LibriSpeech's ``*.trans.txt`` beside the sound files. Transcripts are cut at ``data.seq_len`` tokens.

    :raises ConfigError: for a folder without transcripts, a missing file, or fewer tokens than ``data.tokens``.
    """
    if not hasattr(processor, "feature_extractor"):
        raise ConfigError("data.source=speech: the model has no processor with a feature extractor; give its folder")
    rows = list(_transcripts(Path(str(config.path)).expanduser()))
    if config.order is Order.shuffled:
        random.Random(config.seed).shuffle(rows)
    clips = []
    for file, text in rows:
        ids = processor.tokenizer(text).input_ids[: config.seq_len]
        if ids:
            clips.append(Clip(file, tuple(ids)))
    if config.order is Order.longest_first:
        clips.sort(key=lambda clip: -len(clip.ids))
    kept = _until(clips, config.tokens)
    held = sum(len(clip.ids) for clip in kept)
    if held < config.tokens:
        raise ConfigError(f"data.tokens={config.tokens}: the transcripts hold only {held} tokens")
    for clip in kept:
        if not clip.file.is_file():
            raise ConfigError(f"data.path={config.path}: {clip.file.name} has a transcript and is not there")
    return SpeechClips(tuple(kept), processor)


def _until(clips: Sequence[Clip], tokens: int) -> tuple[Clip, ...]:
    ends = np.cumsum([len(clip.ids) for clip in clips])
    return tuple(clips[: int(np.searchsorted(ends, tokens)) + 1])


def _transcripts(folder: Path) -> Iterator[tuple[Path, str]]:
    listing = folder / METADATA
    if listing.is_file():
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            yield _row(folder, line, f"data.path={listing}: line {number}")
        return
    found = sorted(folder.rglob("*.trans.txt"))
    if not found:
        raise ConfigError(f"data.path={folder}: holds neither {METADATA} nor *.trans.txt")
    for file in found:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield file.parent / f"{name}.flac", text


def _row(folder: Path, line: str, where: str) -> tuple[Path, str]:
    try:
        row = json.loads(line)
        return folder / row["file_name"], next(row[key] for key in TRANSCRIPT_COLUMNS if key in row)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ConfigError(f"{where}: needs file_name and a transcript ({', '.join(TRANSCRIPT_COLUMNS)})") from None


def _read_sound(file: Path, rate: int) -> np.ndarray:
    """The samples of a sound file, its channels averaged.

    :raises ConfigError: for a file that is no sound, or of another sampling rate.
    """
    try:
        import soundfile
    except ImportError:
        raise ConfigError("data.source=speech: needs the package soundfile (pip install soundfile)") from None
    try:
        samples, own = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"data.path: {file} cannot be read ({error})") from None
    if own != rate:
        raise ConfigError(f"data.path: {file} is sampled at {own} Hz, the model needs {rate}; resample it")
    return samples.mean(1)
