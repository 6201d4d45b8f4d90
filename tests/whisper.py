"""A tiny Whisper and generated sound, as folders."""

import json
from pathlib import Path

import numpy as np
from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

from lillama.model.byte_tokenizer import BYTE_TOKENS, byte_tokenizer
from tests.families import tiny

RATE = 16000
SENTENCES = ["a low tone", "a high tone", "silence and then a tone", "two tones together"]


def make_whisper(folder: Path) -> Path:
    """A tiny Whisper that hears one second at a time, and its processor, in the Hub's layout."""
    tokens = {"decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = tiny("whisper", vocab_size=300, max_source_positions=50, **tokens)
    model.generation_config.update(**tokens)
    model.save_pretrained(folder)
    vocabulary = {token: index for token, index in byte_tokenizer().get_vocab().items() if token not in BYTE_TOKENS}
    vocabulary |= {"<|endoftext|>": 2, "<|startoftranscript|>": 1, "<|notimestamps|>": 3, "<|unused|>": 0}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>")
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=160, chunk_length=1, n_fft=400)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def make_speech(folder: Path) -> Path:
    """Generated tones with their sentences, in the layout of Hugging Face's audio folders."""
    import soundfile

    folder.mkdir()
    rows = []
    for number, sentence in enumerate(SENTENCES * 2):
        time = np.arange(int(0.2 * RATE)) / RATE
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (200 + 150 * number) * time), RATE)
        rows.append(json.dumps({"file_name": f"{number}.wav", "transcription": sentence}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder
