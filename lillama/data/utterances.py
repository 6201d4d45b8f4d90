"""Speech that a model is measured on: transcripts now, the sound of each clip when its batch comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lillama.config import Source, WerConfig
from lillama.core.errors import ConfigError
from lillama.data.sound import TRANSCRIPT_COLUMNS, check_sound, read_sound, sound_library, transcripts
from lillama.data.sources import data_files

KEY = "evaluate.wer"
AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip: its name, what is said in it, and how its samples [n] are read for a sampling rate in Hz."""

    key: str
    text: str
    read: Callable[[int], np.ndarray]


def read_speech(config: WerConfig, processor: Any) -> list[Utterance]:
    """The first ``max_clips`` clips of a folder (``source=speech``) or of a dataset (``source=hub``), in their order.

    What can be wrong shows here: of a folder every file's head is read, of a dataset that of the first clip.

    :param processor: of the model, whose sampling rate the sound must have.
    :raises ConfigError: for a model that hears nothing, a language that its tokenizer does not have, a package that is
        not installed, missing or unreadable speech, or another sampling rate.
    """
    if not hasattr(processor, "feature_extractor"):
        raise ConfigError("stages: wer needs a speech_seq2seq model that has a processor with a feature extractor")
    _check_packages(config)
    _check_language(config.language, processor.tokenizer)
    of_source = _of_folder if config.source is Source.speech else _of_dataset
    found = of_source(config, processor.feature_extractor.sampling_rate)
    if not found:
        raise ConfigError(f"{KEY}.path={config.path}: holds no clips")
    return found


def _check_packages(config: WerConfig) -> None:
    sound_library(f"{KEY}.source={config.source.name}")
    try:
        import jiwer  # noqa: F401
    except ImportError:
        raise ConfigError("stages: wer needs the package jiwer (pip install jiwer)") from None


def _check_language(language: str | None, tokenizer: Any) -> None:
    if language is not None and language_token(language) not in tokenizer.get_vocab():
        raise ConfigError(f"{KEY}.language={language}: the model's tokenizer has no such language")


def language_token(language: str) -> str:
    """Whisper's token for a language, by its name or its code."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return f"<|{TO_LANGUAGE_CODE.get(language.lower(), language.lower())}|>"


def _of_folder(config: WerConfig, rate: int) -> list[Utterance]:
    folder = Path(str(config.path)).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{KEY}.path={folder}: no such folder")
    columns = TRANSCRIPT_COLUMNS if config.transcript is None else (config.transcript,)
    found = []
    for file, text in list(transcripts(folder, KEY, columns))[: config.max_clips]:
        if not file.is_file():
            raise ConfigError(f"{KEY}.path={config.path}: {file.name} has a transcript and is not there")
        check_sound(file, rate, key=KEY, name=str(file))
        found.append(Utterance(str(file.relative_to(folder)), text, partial(_read_file, file)))
    return found


def _read_file(file: Path, rate: int) -> np.ndarray:
    return read_sound(file, rate, key=KEY, name=str(file))


def _of_dataset(config: WerConfig, rate: int) -> list[Utterance]:
    rows = _dataset(config)
    column = _transcript_column(config, rows.column_names)
    if config.max_clips is not None:
        rows = rows.select(range(min(config.max_clips, len(rows))))
    texts = rows.select_columns([column])[:][column]
    sounds = _undecoded(rows.select_columns([AUDIO]), f"{KEY}.path={config.path}")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ConfigError(f"{KEY}.path={config.path}: row {number} has no transcript in its column {column}")
    if texts:
        check_sound(_sound(sounds, 0), rate, key=KEY, name=_name(0))
    return [Utterance(_name(index), text, partial(_read_row, sounds, index)) for index, text in enumerate(texts)]


def _dataset(config: WerConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"{KEY}.source=hub: needs the package datasets (pip install datasets)") from None
    place = Path(str(config.path)).expanduser()
    path = str(place) if place.is_dir() else config.path
    files = data_files(config)
    try:
        return datasets.load_dataset(
            path, config.subset, split=config.split, revision=config.revision, data_files=files
        )
    except Exception as error:  # noqa: BLE001 - whatever the Hub client says, the user gets it in one line
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{KEY}.path={config.path}: cannot be loaded ({reason})") from None


def _transcript_column(config: WerConfig, names: Sequence[str]) -> str:
    there = f"there are {', '.join(names)}"
    if AUDIO not in names:
        raise ConfigError(f"{KEY}.path={config.path}: has no column {AUDIO}; {there}")
    known = TRANSCRIPT_COLUMNS if config.transcript is None else (config.transcript,)
    column = next((name for name in known if name in names), None)
    if column is None:
        raise ConfigError(f"{KEY}.transcript={config.transcript}: no column {' or '.join(known)}; {there}")
    return column


def _undecoded(rows: Any, where: str) -> Any:
    """Return the sounds as files: the decoding of datasets needs a package more, and would resample in silence."""
    import datasets

    try:
        return rows.cast_column(AUDIO, datasets.Audio(decode=False))
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where}: the column {AUDIO} holds no sound files ({reason})") from None


def _read_row(sounds: Any, index: int, rate: int) -> np.ndarray:
    return read_sound(_sound(sounds, index), rate, key=KEY, name=_name(index))


def _sound(sounds: Any, index: int) -> Path | bytes:
    held = sounds[index][AUDIO] or {}
    if held.get("bytes"):
        return held["bytes"]
    if held.get("path"):
        return Path(held["path"])
    raise ConfigError(f"{KEY}.path: {_name(index)} has no sound")


def _name(index: int) -> str:
    return f"row {index + 1}"
