"""Word error rate: counts against a distance of its own, texts made alike, a tiny Whisper from sound to figures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from lillama.config import Normalizer, Source, WerConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.data.utterances import Utterance
from lillama.evaluate.wer import Edits, standard_error, word_edits, word_errors
from lillama.model.byte_tokenizer import BYTE_TOKENS, byte_tokenizer
from tests.families import tiny

pytest.importorskip("jiwer", reason="jiwer is not installed")
RATE = 16000
SPECIAL = {"decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@pytest.fixture(scope="module")
def processor():
    """Of a model that hears one second at a time, with one token a byte."""
    vocabulary = {token: index for token, index in byte_tokenizer().get_vocab().items() if token not in BYTE_TOKENS}
    vocabulary |= {"<|endoftext|>": 2, "<|startoftranscript|>": 1, "<|notimestamps|>": 3, "<|unused|>": 0}
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=160, chunk_length=1, n_fft=400)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    return SimpleNamespace(feature_extractor=extractor, tokenizer=tokenizer)


@pytest.fixture
def spelling(processor, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "english_spelling_normalizer", {"colour": "color"}, raising=False)
    return processor


@pytest.fixture
def model():
    made = tiny("whisper", vocab_size=300, max_source_positions=50, **SPECIAL)
    made.generation_config.update(**SPECIAL)
    return made


def config(**changes) -> WerConfig:
    return WerConfig(**{"source": Source.speech, "path": "speech", "batch_size": 3, "max_new_tokens": 8, **changes})


def clips(*texts: str, seconds: float = 0.2) -> list[Utterance]:
    def sound(number: int, rate: int) -> np.ndarray:
        return np.random.default_rng(number).normal(size=int(seconds * rate)).astype(np.float32)

    return [
        Utterance(str(number), text, lambda rate, number=number: sound(number, rate))
        for number, text in enumerate(texts)
    ]


def says(monkeypatch, model, processor, *texts: str) -> list[dict]:
    """The model writes these texts, one a clip, whatever it hears; what it was asked, call by call."""
    left, asked = list(texts), []

    def generate(**arguments):
        asked.append(arguments)
        said = [left.pop(0) for _ in arguments["input_features"]]
        ids = [processor.tokenizer(text).input_ids for text in said]
        length = max(map(len, ids))
        return torch.tensor([[*one, *[2] * (length - len(one))] for one in ids])

    monkeypatch.setattr(model, "generate", generate)
    return asked


def knows_french(model) -> None:
    own = model.generation_config
    own.is_multilingual, own.lang_to_id, own.task_to_id = True, {"<|fr|>": 5}, {"transcribe": 6}


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's, row by row."""
    row = list(range(len(hypothesis) + 1))
    for number, word in enumerate(reference, 1):
        before, row[0] = row[0], number
        for column, other in enumerate(hypothesis, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != other))
    return row[-1]


@given(WORDS.filter(bool), WORDS)
def test_edits_are_the_fewest(reference, hypothesis):
    found = word_edits(" ".join(reference), " ".join(hypothesis))
    assert found.errors == distance(reference, hypothesis)
    assert found.words == len(reference)
    assert found.hits + found.substitutions + found.insertions == len(hypothesis)


def test_the_reference_itself_has_no_errors(monkeypatch, model, processor):
    texts = ("one tone", "two tones", "silence", "and again a tone")
    says(monkeypatch, model, processor, *texts)
    found = word_errors(model, processor, clips(*texts), config())
    assert found["wer"] == found["stderr"] == 0
    assert found["hits"] == found["words"] == 9
    assert found["clips"] == 4
    assert found["tokens"] == sum(map(len, texts)), "one a byte, none of the special ones"
    assert found["examples"][1] == {"reference": "two tones", "hypothesis": "two tones"}


def test_known_edits_of_a_corpus(monkeypatch, model, processor):
    says(monkeypatch, model, processor, "the dog sat", "hello there my friend")
    found = word_errors(model, processor, clips("the cat sat down", "hello there"), config(batch_size=1))
    counts = {name: found[name] for name in ("substitutions", "deletions", "insertions", "hits", "words")}
    assert counts == {"substitutions": 1, "deletions": 1, "insertions": 2, "hits": 4, "words": 6}
    assert found["wer"] == pytest.approx(4 / 6), "of the corpus, not the mean of the clips"


REFERENCE, HYPOTHESIS = "Mr. Smith's COLOUR, twenty-one (they say)!", "mister smith is color 21"


def test_the_english_normaliser(monkeypatch, model, spelling):
    says(monkeypatch, model, spelling, HYPOTHESIS)
    found = word_errors(model, spelling, clips(REFERENCE), config())
    assert (found["wer"], found["words"], found["normalizer"]) == (0, 5, "english")
    assert found["examples"] == [{"reference": REFERENCE, "hypothesis": HYPOTHESIS}], "as they were"
    assert found["notes"] == []


def test_a_tokenizer_without_spellings_says_so(monkeypatch, model, processor):
    says(monkeypatch, model, processor, HYPOTHESIS)
    found = word_errors(model, processor, clips(REFERENCE), config())
    assert found["substitutions"] == 1
    assert "normalizer.json" in found["notes"][0]


def test_the_basic_normaliser_knows_no_words(monkeypatch, model, processor):
    says(monkeypatch, model, processor, "ÇA VA, COLOUR", "twenty one")
    found = word_errors(model, processor, clips("Ça va: colour!", "21"), config(normalizer=Normalizer.basic))
    assert found["hits"] == 3
    assert (found["substitutions"], found["insertions"]) == (1, 1)
    assert (found["normalizer"], found["notes"]) == ("basic", [])


def test_references_without_words_are_left_out_and_told(monkeypatch, model, processor):
    asked = says(monkeypatch, model, processor, "a tone", "a tone")
    found = word_errors(model, processor, clips("a tone", "[noise]", "Mm, (hm)!", "a tone"), config())
    assert (found["clips"], found["empty"], found["words"]) == (2, 2, 4)
    assert len(asked[0]["input_features"]) == 2
    with pytest.raises(ConfigError, match=r"evaluate.wer.path=speech: no transcript holds a word"):
        word_errors(model, processor, clips("(laughter)"), config())


def test_sound_is_read_when_its_batch_comes(monkeypatch, model, processor):
    asked, order = says(monkeypatch, model, processor, *["tone"] * 5), []
    heard = [
        Utterance(clip.key, clip.text, lambda rate, read=clip.read: order.append(len(asked)) or read(rate))
        for clip in clips(*["tone"] * 5)
    ]
    word_errors(model, processor, heard, config(batch_size=2))
    assert order == [0, 0, 1, 1, 2]


def test_a_tiny_whisper_from_sound_to_figures(model, processor):
    speech = clips("a low tone", "a high tone", "silence and then a tone", "two tones together", "noise")
    found = word_errors(model, processor, speech, config())
    json.dumps(found, allow_nan=False)
    assert found["wer"] > 0
    assert found["tokens"] <= 5 * 8
    assert min(found[name] for name in ("seconds", "tokens_per_second", "real_time_factor")) > 0
    assert "peak_device_memory" not in found, "there is no GPU"
    alone = word_errors(model, processor, speech, config(batch_size=1))
    assert alone["examples"] == found["examples"]
    assert alone["wer"] == found["wer"]


def test_features_have_the_models_precision(model, processor):
    assert word_errors(model.to(torch.bfloat16), processor, clips("a tone"), config())["clips"] == 1


def test_what_a_window_does_not_hold_is_told(monkeypatch, model, processor):
    says(monkeypatch, model, processor, "long", "short")
    found = word_errors(model, processor, clips("long", seconds=1.5) + clips("short"), config())
    assert found["cut"] == 1
    assert found["notes"][-1] == "of 1 clips only the first 1 s were heard"
    assert found["real_time_factor"] * found["seconds"] == pytest.approx(1.2)


def test_logits_that_are_not_finite_stop_it(model, processor):
    model.model.decoder.layer_norm.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="wer: the logits after 1 tokens"):
        word_errors(model, processor, clips("a tone"), config())


def test_a_language_is_told_to_a_multilingual_model_only(monkeypatch, model, processor):
    with pytest.raises(ConfigError, match=r"evaluate.wer.language=fr: the model is for one language only"):
        word_errors(model, processor, clips("a"), config(language="fr"))
    knows_french(model)
    with pytest.raises(ConfigError, match=r"evaluate.wer.language=german: the model has no such language"):
        word_errors(model, processor, clips("a"), config(language="german"))
    asked = says(monkeypatch, model, processor, "a", "a")
    assert word_errors(model, processor, clips("a"), config(language="French"))["language"] == "French"
    word_errors(model, processor, clips("a"), config())
    assert (asked[0]["language"], asked[0]["task"]) == ("French", "transcribe")
    assert not {"language", "task"} & set(asked[1]), "its own default"


def test_a_multilingual_tiny_whisper_hears_in_a_language(model, processor):
    knows_french(model)
    assert word_errors(model, processor, clips("a tone"), config(language="fr"))["clips"] == 1


def test_more_tokens_than_positions(model, processor):
    with pytest.raises(ConfigError, match=r"evaluate.wer.max_new_tokens=225: .* 32 positions; give at most 28"):
        word_errors(model, processor, clips("a tone"), config(max_new_tokens=225))
    assert word_errors(model, processor, clips("a tone"), config(max_new_tokens=28))["clips"] == 1


def test_the_standard_error_of_clips_alike_in_length_is_that_of_a_mean():
    errors = np.random.default_rng(1).integers(0, 5, 200)
    found = standard_error([Edits(10 - count, count, 0, 0) for count in errors])
    assert found == pytest.approx(errors.std(ddof=1) / 10 / np.sqrt(200), rel=0.1)
    assert found == standard_error([Edits(10 - count, count, 0, 0) for count in errors]), "seeded"


def test_there_is_no_standard_error_of_one_clip():
    assert standard_error([Edits(1, 1, 0, 0)]) is None
