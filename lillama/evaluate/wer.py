"""Word error rate of a speech model (Table 16): it writes down every clip, and its words are held to the transcript's.

Both texts go through Whisper's own normaliser first (Radford et al. 2022, Appendix C): lower case, no punctuation, and
for English one spelling and numbers as figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from lillama.config import Normalizer, WerConfig
from lillama.core.errors import ConfigError
from lillama.data.utterances import KEY, Utterance, read_speech
from lillama.evaluate.measure import Figures, Given, Measure
from lillama.evaluate.transcribe import check_positions, transcribe

EXAMPLES = 5
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Edits:
    """Counts of a clip's words that are right, substituted, deleted and inserted."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def words(self) -> int:
        """Of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Count the edits that make the hypothesis the reference."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True, slots=True)
class WordErrors(Measure):
    """``stages=[wer]``."""

    config: WerConfig
    processor: Any
    speech: Sequence[Utterance]
    progress: bool

    @classmethod
    def read(cls, given: Given) -> "WordErrors":
        """Read the transcripts; the sound is read when a clip's turn comes."""
        config = given.config.wer
        check_positions(given.model, config)
        return cls(config, given.tokenizer, read_speech(config, given.tokenizer), given.progress)

    def measure(self, model: nn.Module, *, dense: Figures | None, note: Callable[[Figures], None]) -> Figures:
        """Have the model write down every clip."""
        return word_errors(model, self.processor, self.speech, self.config, progress=self.progress)


def word_errors(
    model: Any, processor: Any, speech: Sequence[Utterance], config: WerConfig, *, progress: bool = False
) -> dict[str, Any]:
    """Transcribe greedily and compare: substitutions, deletions and insertions over the words of all references.

    A clip whose reference holds no word after normalisation is left out; ``empty`` says how many. ``tokens`` are those
    of the texts, without special ones. Speeds leave the first batch out, where there are more: ``tokens_per_second``,
    and ``real_time_factor``, seconds of sound per second. ``seconds`` are those of all generation.

    :param model: in evaluation mode. :param processor: its feature extractor and tokenizer.
    :return: plain values; ``wer`` and its ``stderr`` are fractions, not percent.
    :raises ConfigError: for a language or a length that the model does not have, unreadable sound, or no words.
    :raises DivergedError: where logits are not finite.
    """
    normalise, notes = _normaliser(processor.tokenizer, config.normalizer)
    counted = [clip for clip in speech if normalise(clip.text).strip()]
    if not counted:
        raise ConfigError(f"{KEY}.path={config.path}: no transcript holds a word after normalisation")
    heard = transcribe(model, processor, counted, config, progress=progress)
    edits = [word_edits(normalise(clip.text), normalise(text)) for clip, text in zip(counted, heard.texts, strict=True)]
    if heard.cut:
        notes.append(f"of {heard.cut} clips only the first {heard.window:g} s were heard")
    return {
        **_rates(edits),
        "clips": len(counted),
        "empty": len(speech) - len(counted),
        "cut": heard.cut,
        **heard.speeds(),
        "normalizer": config.normalizer.name,
        "language": config.language,
        "examples": [
            {"reference": clip.text, "hypothesis": text}
            for clip, text in zip(counted[:EXAMPLES], heard.texts, strict=False)
        ],
        "notes": notes,
    }


def word_edits(reference: str, hypothesis: str) -> Edits:
    """The fewest edits of words, apart by spaces, between two normalised texts; the reference holds at least one."""
    import jiwer

    found = jiwer.process_words(reference, hypothesis)
    return Edits(found.hits, found.substitutions, found.deletions, found.insertions)


def standard_error(edits: Sequence[Edits], *, resamples: int = RESAMPLES, seed: int = 0) -> float | None:
    """The standard error of the rate over clips drawn with replacement (Bisani and Ney 2004); None of a single clip."""
    if len(edits) < 2:
        return None
    errors, words = (np.array([getattr(one, name) for one in edits]) for name in ("errors", "words"))
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = generator.integers(0, len(edits), len(edits))
        rates.append(errors[drawn].sum() / words[drawn].sum())
    return float(np.std(rates, ddof=1))


def _normaliser(tokenizer: Any, kind: Normalizer) -> tuple[Callable[[str], str], list[str]]:
    """Whisper's normaliser, and what is to be said of it."""
    if kind is Normalizer.basic:
        return BasicTextNormalizer(), []
    spellings = getattr(tokenizer, "english_spelling_normalizer", None)
    if spellings is None:
        return EnglishTextNormalizer({}), [
            "the tokenizer has no normalizer.json: British spellings were left as they are"
        ]
    return EnglishTextNormalizer(spellings), []


def _rates(edits: Sequence[Edits]) -> dict[str, Any]:
    names = ("substitutions", "deletions", "insertions", "hits", "words")
    total = {name: sum(getattr(one, name) for one in edits) for name in names}
    return {"wer": sum(one.errors for one in edits) / total["words"], "stderr": standard_error(edits), **total}
