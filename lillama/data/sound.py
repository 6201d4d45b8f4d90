"""Folders of speech: which sound files there are with which transcripts, and the samples of one sound."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lillama.config import Format
from lillama.core.errors import ConfigError
from lillama.data.formats import format_of
from lillama.data.records import Form, Records, one_line
from lillama.data.rows import TEXT_COLUMNS, Rows
from lillama.data.sources import read_file
from lillama.data.texts import encodable
from lillama.data.utf8 import utf8_file

METADATA, METADATA_STEM = "metadata.jsonl", "metadata."
TRANSCRIPT_COLUMNS = ("transcription", "transcript", "sentence", *TEXT_COLUMNS)
Sound = Path | bytes  # a sound file, or what one holds


def transcripts(folder: Path, key: str, columns: Sequence[str] = TRANSCRIPT_COLUMNS) -> Iterator[tuple[Path, str]]:
    """Read the sound files of a folder with their transcripts, in the order of its listing.

    The folder holds ``metadata.jsonl`` (``file_name`` and a transcript a line, as Hugging Face's audio folders do; or
    ``metadata`` in another format of tables), or LibriSpeech's ``*.trans.txt`` beside the sound files.

    :param key: the configuration group, for errors. :param columns: which may hold the transcript, best first.
    :raises ConfigError: for a folder without transcripts or with several listings, or a line that is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key}.path={folder}: no such folder")
    listings = _listings(folder)
    if len(listings) > 1:
        names = ", ".join(file.name for file, _ in listings)
        raise ConfigError(f"{key}.path={folder}: holds several listings ({names}); leave one")
    for file, form in listings:
        rows = read_file(file, form, f"{key}.path={file}")
        for index in range(len(rows)):
            yield _listed(folder, rows[index], columns, rows, index)
    if listings:
        return
    found = sorted(folder.rglob("*.trans.txt"))
    if not found:
        raise ConfigError(f"{key}.path={folder}: holds neither {METADATA} nor *.trans.txt")
    for file in found:
        yield from _spoken(file, f"{key}.path={file}")


def _listings(folder: Path) -> list[tuple[Path, Format]]:
    """Return the listings of a folder; what is called metadata and is no table, as metadata.txt, is none."""
    files = (file for file in sorted(folder.iterdir()) if file.name.lower().startswith(METADATA_STEM))
    named = ((file, format_of(file)) for file in files if file.is_file())
    return [(file, form) for file, form in named if form is not None and form is not Format.text]


def _listed(folder: Path, row: Any, columns: Sequence[str], rows: Rows, index: int) -> tuple[Path, str]:
    name = row.get("file_name") if isinstance(row, dict) else None
    text = next((row[column] for column in columns if row.get(column) is not None), None) if name else None
    if not isinstance(name, str) or not isinstance(text, str):
        raise ConfigError(f"{rows.where(index)}: needs file_name and a transcript ({', '.join(columns)})")
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"{rows.where(index)}: file_name must name a file in the folder, not {name!r}")
    return folder / name, encodable(text)[0]


def _spoken(file: Path, where: str) -> Iterator[tuple[Path, str]]:
    """Yield the lines of a LibriSpeech transcript: a name, a space, what is said."""
    lines = Records(held := utf8_file(file, where), Form(one_line, str.strip, held.start), where)
    for index in range(len(lines)):
        name, _, text = lines[index].partition(" ")
        yield file.parent / f"{name}.flac", text


def read_sound(sound: Sound, rate: int, *, key: str, name: str) -> np.ndarray:
    """Return the samples [n] of a sound, its channels averaged, as float32.

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
    """Return the library that reads sound files; ``asked`` is the setting that needs it.

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
