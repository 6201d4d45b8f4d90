"""Folders of speech: which sound files there are with which transcripts, and the samples of one sound."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lillama.data.rows import TEXT_COLUMNS
from lillama.errors import ConfigError

METADATA = "metadata.jsonl"
TRANSCRIPT_COLUMNS = ("transcription", "transcript", "sentence", *TEXT_COLUMNS)
Sound = Path | bytes  # a sound file, or what one holds


def transcripts(folder: Path, key: str, columns: Sequence[str] = TRANSCRIPT_COLUMNS) -> Iterator[tuple[Path, str]]:
    """The sound files of a folder with their transcripts, in the order of its listing.

    The folder holds ``metadata.jsonl`` (``file_name`` and a transcript a line, as Hugging Face's audio folders do), or
    LibriSpeech's ``*.trans.txt`` beside the sound files.

    :param key: the configuration group, for errors. :param columns: which may hold the transcript, best first.
    :raises ConfigError: for a folder without transcripts, or a line that is none.
    """
    listing = folder / METADATA
    if listing.is_file():
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            yield _row(folder, line, f"{key}.path={listing}: line {number}", columns)
        return
    found = sorted(folder.rglob("*.trans.txt"))
    if not found:
        raise ConfigError(f"{key}.path={folder}: holds neither {METADATA} nor *.trans.txt")
    for file in found:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield file.parent / f"{name}.flac", text


def _row(folder: Path, line: str, where: str, columns: Sequence[str]) -> tuple[Path, str]:
    try:
        row = json.loads(line)
        text = next(row[column] for column in columns if column in row)
        if not isinstance(text, str):
            raise TypeError
        return folder / row["file_name"], text
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ConfigError(f"{where}: needs file_name and a transcript ({', '.join(columns)})") from None


def read_sound(sound: Sound, rate: int, *, key: str, name: str) -> np.ndarray:
    """The samples [n] of a sound, its channels averaged, as float32.

    :param rate: what the model hears, in Hz. :param key: the configuration group, for errors. :param name: of the
        sound, for errors.
    :raises ConfigError: for a file that is no sound, or of another sampling rate.
    """
    soundfile = sound_library(f"{key}.source=speech")
    try:
        samples, own = soundfile.read(_opened(sound), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"{key}.path: {name} cannot be read ({error})") from None
    _check_rate(own, rate, f"{key}.path: {name}")
    return samples.mean(1)


def check_sound(sound: Sound, rate: int, *, key: str, name: str) -> None:
    """Raise what :func:`read_sound` would raise, as far as the head of the file tells."""
    soundfile = sound_library(f"{key}.source=speech")
    try:
        own = soundfile.info(_opened(sound)).samplerate
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"{key}.path: {name} cannot be read ({error})") from None
    _check_rate(own, rate, f"{key}.path: {name}")


def sound_library(asked: str) -> Any:
    """The library that reads sound files; ``asked`` is the setting that needs it.

    :raises ConfigError: where it is not installed.
    """
    try:
        import soundfile
    except ImportError:
        raise ConfigError(f"{asked}: needs the package soundfile (pip install soundfile)") from None
    return soundfile


def _opened(sound: Sound) -> Path | io.BytesIO:
    return io.BytesIO(sound) if isinstance(sound, bytes) else sound


def _check_rate(own: int, rate: int, where: str) -> None:
    if own != rate:
        raise ConfigError(f"{where} is sampled at {own} Hz, the model needs {rate}; resample it")
