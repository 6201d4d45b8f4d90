"""Whisper end to end: a local folder in the Hub's layout, a processor, sound files made here."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    WhisperForConditionalGeneration,
    pipeline,
)

from lillama import load_checkpoint
from lillama.core.results import read_json
from tests.whisper import RATE, make_speech, make_whisper

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")


@pytest.fixture
def whisper(tmp_path):
    return make_whisper(tmp_path / "whisper")


@pytest.fixture
def speech(tmp_path):
    return make_speech(tmp_path / "speech")


def words(whisper, speech, folder, *more):
    return (
        "preset=local",
        "model=hub",
        f"model.path={whisper}",
        "data=speech",
        f"data.path={speech}",
        "data.tokens=64",
        "strategy=uniform",
        "stages=[plan,init,distill]",
        "progress=false",
        "logger=csv",
        f"hydra.run.dir={folder}",
        *more,
    )


def test_a_decoder_is_compressed_and_the_encoder_stays_bit_identical(cli, whisper, speech, tmp_path):
    out = tmp_path / "out"
    status, _, err = cli(*words(whisper, speech, out, "strategy.scope=decoder", "strategy.reduction=0.2"))
    assert status == 0, err
    result = read_json(out / "results.json")
    assert result["data"]["tokens"] >= 64
    dense = WhisperForConditionalGeneration.from_pretrained(whisper)
    small = load_checkpoint(out / "checkpoint")
    assert sum(p.numel() for p in small.parameters()) == result["parameters"]["compressed"]
    theirs = small.model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in dense.model.encoder.state_dict().items())
    told = read_json(out / "checkpoint" / "config.json")["quantization_config"]["linear"]
    assert told
    assert all(name.startswith("model.decoder.") for name in told)


def test_transcription_through_the_processor(cli, whisper, speech, tmp_path):
    """Both sides compressed; the checkpoint's own processor and the pipeline run it."""
    out = tmp_path / "out"
    assert cli(*words(whisper, speech, out, "strategy.reduction=0.2"))[0] == 0
    checkpoint = out / "checkpoint"
    told = read_json(checkpoint / "config.json")["quantization_config"]["linear"]
    assert {name.split(".")[1] for name in told} == {"encoder", "decoder"}
    samples, _ = soundfile.read(speech / "0.wav", dtype="float32")
    processor = AutoProcessor.from_pretrained(checkpoint)
    features = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    tokens = load_checkpoint(checkpoint).generate(features, max_new_tokens=5)
    assert isinstance(processor.batch_decode(tokens)[0], str)
    recogniser = pipeline("automatic-speech-recognition", model=str(checkpoint))
    card = (checkpoint / "README.md").read_text()
    assert "AutoModelForSpeechSeq2Seq" in card
    assert "No perplexity was measured" in card
    assert str(whisper.parent) not in card, "no path of this machine"
    assert isinstance(recogniser(samples, generate_kwargs={"max_new_tokens": 5})["text"], str)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metadata.jsonl").unlink(), "holds neither metadata.jsonl nor"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "0.wav"}'),
            "line 1: needs file_name and",
        ),
        (lambda folder: (folder / "0.wav").unlink(), "0.wav has a transcript and is not there"),
        (lambda folder: (folder / "0.wav").write_bytes(b"no sound"), "0.wav cannot be read"),
        (lambda folder: soundfile.write(folder / "0.wav", np.zeros(800), 8000), "sampled at 8000 Hz"),
    ],
)
def test_bad_sound_is_one_line(cli, whisper, speech, damage, message):
    damage(speech)
    status, _, err = cli(*words(whisper, speech, speech.parent / "out", "data.order=given"))
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_librispeechs_own_layout(whisper, speech):
    from lillama.config import DataConfig, Source
    from lillama.data.speech import speech_clips

    chapter = speech / "84" / "121"
    chapter.mkdir(parents=True)
    (speech / "metadata.jsonl").unlink()
    (chapter / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT\n")
    for number in range(2):
        soundfile.write(chapter / f"84-121-000{number}.flac", np.zeros(1600), RATE)
    processor = AutoProcessor.from_pretrained(whisper)
    config = DataConfig(source=Source.speech, path=str(speech), tokens=18, seq_len=16)
    clips = speech_clips(config, processor)
    (batch,) = clips.batches(4, "cpu")
    assert batch.features.shape == (2, 8, 100)
    assert batch.tokens == clips.tokens == int(batch.mask.sum())
    assert len(clips.head(1)) == 1
    assert clips.hash != clips.head(1).hash


def test_a_compressed_decoder_is_fine_tuned_with_its_encoder_frozen(cli, whisper, speech, tmp_path):
    """Table 16, in small: a compressed decoder learns from speech, and its word error rate is measured after it."""
    out = tmp_path / "out"
    tuned = ("finetune/data=speech", f"finetune.data.path={speech}", "finetune.scope=decoder", "finetune.lr=1e-3")
    rest = (
        "strategy.scope=decoder",
        "stages=[plan,init,distill,finetune,wer]",
        "finetune.batch_size=4",
        "finetune.epochs=4",
    )
    heard = ("evaluate/wer=local", f"evaluate.wer.path={speech}", "evaluate.wer.max_new_tokens=20")
    status, _, err = cli(*words(whisper, speech, out, *tuned, *rest, *heard))
    assert status == 0, err
    result = read_json(out / "results.json")
    found = result["finetune"]
    assert found["tokens"] == 4 * found["data"]["tokens"]
    assert found["data"]["tokens"] > result["data"]["tokens"], "all of the speech, not what calibration takes"
    losses = [loss for _, loss in found["loss"]]
    assert losses[-1] < losses[0]
    assert found["curve"] == []
    assert set(result["measured"]["wer"]) == {"dense", "compressed"}
    dense = WhisperForConditionalGeneration.from_pretrained(whisper)
    small = load_checkpoint(out / "checkpoint")
    theirs = small.model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in dense.model.encoder.state_dict().items())
    assert not torch.equal(small.model.decoder.embed_tokens.weight, dense.model.decoder.embed_tokens.weight)


def test_a_dense_speech_model_is_fine_tuned_and_stays_an_ordinary_one(cli, whisper, speech, tmp_path):
    out = tmp_path / "out"
    tuned = ("stages=[finetune,wer]", "finetune/data=speech", f"finetune.data.path={speech}", "finetune.lr=1e-3")
    heard = ("evaluate/wer=local", f"evaluate.wer.path={speech}", "evaluate.wer.max_new_tokens=20")
    status, _, err = cli(*words(whisper, speech, out, *tuned, *heard))
    assert status == 0, err
    assert set(read_json(out / "results.json")["measured"]["wer"]) == {"dense"}
    model = WhisperForConditionalGeneration.from_pretrained(out / "checkpoint")
    assert not hasattr(model.config, "quantization_config")
    AutoProcessor.from_pretrained(out / "checkpoint")


def test_a_compressed_speech_model_learns_from_the_dense_one_in_a_run_of_its_own(cli, whisper, speech, tmp_path):
    status, _, err = cli(*words(whisper, speech, tmp_path / "made", "stages=[plan,init]"))
    assert status == 0, err
    own = (f"model.path={tmp_path / 'made' / 'checkpoint'}", f"evaluate.baseline={whisper}", "stages=[finetune]")
    tuned = ("finetune=kl", "finetune/data=speech", f"finetune.data.path={speech}", "finetune.lr=1e-4")
    steps = ("finetune.batch_size=8", "finetune.epochs=12")  # every update sees all sentences: its losses compare
    status, _, err = cli(*words(whisper, speech, tmp_path / "out", *own, *tuned, *steps))
    assert status == 0, err
    losses = [loss for _, loss in read_json(tmp_path / "out" / "results.json")["finetune"]["loss"]]
    assert losses[-1] < losses[0]


def test_the_recommended_recipe_compresses_a_speech_model(cli, whisper, speech, tmp_path):
    """Ranks and a start by the curvature on both sides, pivoted factors, then the dense model's logits."""
    out = tmp_path / "out"
    sizes = ("strategy.reduction=0.2", "data.seq_len=32", "finetune.data.tokens=128")
    stages = ("strategy=kfac", "stages=[plan,init,finetune,wer]", *sizes)
    heard = ("evaluate/wer=local", f"evaluate.wer.path={speech}", "evaluate.wer.max_new_tokens=20")
    status, _, err = cli(*words(whisper, speech, out, "preset=recommended", *stages, *heard)[1:])
    assert status == 0, err
    result = read_json(out / "results.json")
    assert 0 < result["loss_rise"]["predicted"] < float("inf")
    assert {name.split(".")[1] for name in read_json(out / "plan.json")["ranks"]} == {"encoder", "decoder"}
    small = load_checkpoint(out / "checkpoint")
    assert sum(p.numel() for p in small.parameters()) == result["parameters"]["compressed"]


def test_a_speech_model_is_not_fine_tuned_on_text(cli, whisper, speech, tmp_path):
    status, _, err = cli(*words(whisper, speech, tmp_path / "out", "stages=[finetune]"))
    assert status == 2
    assert "finetune.data.source=stdlib_docs: " in err
    assert "is a speech_seq2seq model and needs speech" in err
