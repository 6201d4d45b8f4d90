"""Speech with transcripts from folders and datasets: all that can be wrong shows before a model is loaded."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lillama.config import Source, WerConfig
from lillama.core.errors import ConfigError
from lillama.data.utterances import read_speech

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("jiwer", reason="jiwer is not installed")
RATE = 16000
SENTENCES = ("one tone", "another tone", "a third")
TOKENIZER = SimpleNamespace(get_vocab=lambda: {"<|en|>": 0, "<|fr|>": 1})
PROCESSOR = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE), tokenizer=TOKENIZER)


def tone(number: int) -> np.ndarray:
    return (0.1 * (number + 1) * np.sin(np.arange(800 * (number + 1)) / 20)).astype(np.float32)


def wav(number: int, rate: int = RATE) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, tone(number), rate, format="WAV", subtype="FLOAT")
    return held.getvalue()


def of_folder(folder, **changes) -> WerConfig:
    return WerConfig(**{"source": Source.speech, "path": str(folder), **changes})


def of_dataset(folder, **changes) -> WerConfig:
    return WerConfig(**{"source": Source.hub, "path": str(folder), "split": "test", **changes})


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(wav(number))
    rows = [{"file_name": f"{n}.wav", "sentence": text, "loud": text.upper()} for n, text in enumerate(SENTENCES)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def dataset(folder, *, rates=(RATE,) * 3, **columns):
    """A parquet file as the Hub holds them."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    import pyarrow.parquet

    sounds = [{"bytes": wav(number, rate), "path": f"{number}.wav"} for number, rate in enumerate(rates)]
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"audio": sounds, **columns}), folder / "test.parquet")
    return folder


def test_a_folders_clips_in_the_order_of_their_listing(folder):
    found = read_speech(of_folder(folder), PROCESSOR)
    assert [(clip.key, clip.text) for clip in found] == [(f"{n}.wav", text) for n, text in enumerate(SENTENCES)]
    for number, clip in enumerate(found):
        assert np.array_equal(clip.read(RATE), tone(number))


def test_a_dataset_reads_like_a_folder_with_the_same_sound(folder, tmp_path):
    files = read_speech(of_folder(folder), PROCESSOR)
    rows = read_speech(of_dataset(dataset(tmp_path / "hub", text=list(SENTENCES))), PROCESSOR)
    assert [clip.text for clip in rows] == [clip.text for clip in files]
    assert all(np.array_equal(row.read(RATE), file.read(RATE)) for row, file in zip(rows, files, strict=True))


def test_a_dataset_may_name_files_instead_of_holding_them(folder, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed")
    listing = tmp_path / "hub"
    listing.mkdir()
    (listing / "test.jsonl").write_text(json.dumps({"audio": str(folder / "1.wav"), "text": "a tone"}))
    (clip,) = read_speech(of_dataset(listing), PROCESSOR)
    assert np.array_equal(clip.read(RATE), tone(1))


def test_librispeechs_layout(tmp_path):
    chapter = tmp_path / "84" / "121"
    chapter.mkdir(parents=True)
    (chapter / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT\n")
    for number in range(2):
        soundfile.write(chapter / f"84-121-000{number}.flac", tone(number), RATE)
    found = read_speech(of_folder(tmp_path), PROCESSOR)
    assert [(clip.key, clip.text) for clip in found] == [
        ("84/121/84-121-0000.flac", "GO DO YOU HEAR"),
        ("84/121/84-121-0001.flac", "BUT"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_listings_in_other_forms_and_unicode_encodings(encoding, folder, tmp_path):
    rows = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.txt").write_text("about these clips")
    (folder / "metadata.jsonl").write_text(rows.replace("a third", "a third\u2028and more"), encoding=encoding)
    texts = [clip.text for clip in read_speech(of_folder(folder), PROCESSOR)]
    assert texts == [*SENTENCES[:2], "a third\u2028and more"]
    (folder / "metadata.jsonl").write_text(rows.replace("a third", "half \\ud83d"))
    assert read_speech(of_folder(folder), PROCESSOR)[2].text == "half \ufffd"
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,of the table\n")
    with pytest.raises(ConfigError, match=r"several listings \(metadata\.csv, metadata\.jsonl\)"):
        read_speech(of_folder(folder), PROCESSOR)
    (folder / "metadata.jsonl").unlink()
    assert [clip.text for clip in read_speech(of_folder(folder), PROCESSOR)] == ["of the table"]
    spoken = tmp_path / "spoken"
    spoken.mkdir()
    soundfile.write(spoken / "1.flac", tone(1), RATE)
    (spoken / "a.trans.txt").write_text("1 A TONE\x85SAID\n\n", encoding=encoding)
    assert [clip.text for clip in read_speech(of_folder(spoken), PROCESSOR)] == ["A TONE\x85SAID"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file_name": "0.wav", "text": "caf\xe9"}', "line 1: cannot be read, it is not UTF-8"),
        (b'{"file_name": "0.wav", "text": "\0"}', "line 1: holds NUL bytes"),
        (b'{"file_name": "a\\u0000b.wav", "text": "x"}', "line 1: file_name must name a file in the folder"),
        (b'{"file_name": "/etc/passwd", "text": "x"}', "line 1: file_name must name a file in the folder"),
        (b'{"file_name": "../0.wav", "text": "x"}', "line 1: file_name must name a file in the folder"),
        (b'{"file_name": "0.wav", "text": null}', "line 1: needs file_name and a transcript"),
        (b"[1]", "line 1: needs file_name and a transcript"),
        (b"{broken", "line 1: not JSON"),
    ],
)
def test_a_line_of_a_listing_that_cannot_be_read_is_named(line, message, folder):
    (folder / "metadata.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ConfigError, match=rf"^evaluate\.wer\.path=.*metadata\.jsonl: {message}"):
        read_speech(of_folder(folder), PROCESSOR)


def test_the_first_clips_and_another_column(folder, tmp_path):
    (clip,) = read_speech(of_folder(folder, max_clips=1, transcript="loud"), PROCESSOR)
    assert clip.text == "ONE TONE"
    hub = dataset(tmp_path / "hub", transcription=["a", "b", "c"], raw_transcription=["A", "B", "C"])
    assert [clip.text for clip in read_speech(of_dataset(hub, max_clips=2), PROCESSOR)] == ["a", "b"]
    found = read_speech(of_dataset(hub, max_clips=9, transcript="raw_transcription"), PROCESSOR)
    assert [clip.text for clip in found] == ["A", "B", "C"]


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.stack([np.full(80, 0.5), np.zeros(80)], 1), RATE, subtype="FLOAT")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "two.wav", "text": "a"}')
    (clip,) = read_speech(of_folder(tmp_path), PROCESSOR)
    assert np.array_equal(clip.read(RATE), np.full(80, 0.25, np.float32))


def in_one_line(config, processor=PROCESSOR) -> str:
    with pytest.raises(ConfigError) as caught:
        read_speech(config, processor)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metadata.jsonl").unlink(), "holds neither metadata.jsonl nor"),
        (lambda folder: (folder / "metadata.jsonl").write_text(""), "holds no clips"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "0.wav", "text": null}'),
            "line 1: needs",
        ),
        (lambda folder: (folder / "2.wav").unlink(), "2.wav has a transcript and is not there"),
        (lambda folder: (folder / "2.wav").write_bytes(b"no sound"), "2.wav cannot be read"),
        (
            lambda folder: (folder / "2.wav").write_bytes(wav(2, 8000)),
            "2.wav is sampled at 8000 Hz, the model needs 16000",
        ),
    ],
)
def test_a_bad_folder(folder, damage, message):
    damage(folder)
    told = in_one_line(of_folder(folder))
    assert message in told
    assert told.startswith("evaluate.wer.path")


def test_no_folder_and_no_such_column(folder):
    assert "no such folder" in in_one_line(of_folder(folder / "nowhere"))
    assert "(quiet)" in in_one_line(of_folder(folder, transcript="quiet"))


def test_a_bad_dataset(tmp_path):
    texts = {"text": list(SENTENCES)}
    good = dataset(tmp_path / "good", **texts)
    assert "evaluate.wer.transcript=words: no column words" in in_one_line(of_dataset(good, transcript="words"))
    assert "cannot be loaded" in in_one_line(of_dataset(good, split="nowhere"))
    slow = dataset(tmp_path / "slow", rates=(8000, RATE, RATE), **texts)
    assert "evaluate.wer.path: row 1 is sampled at 8000 Hz" in in_one_line(of_dataset(slow))
    gap = dataset(tmp_path / "gap", text=["a", None, "c"])
    assert "row 2 has no transcript" in in_one_line(of_dataset(gap))
    mute = tmp_path / "mute"
    mute.mkdir()
    (mute / "test.jsonl").write_text('{"text": "a", "audio": 3.5}')
    assert "holds no sound files" in in_one_line(of_dataset(mute))
    (mute / "test.jsonl").write_text('{"text": "b", "length": 1}')
    assert "has no column audio; there are text, length" in in_one_line(of_dataset(mute))


def test_another_rate_within_a_dataset_shows_when_it_is_read(tmp_path):
    hub = dataset(tmp_path / "hub", rates=(RATE, 8000, RATE), text=list(SENTENCES))
    first, second, _ = read_speech(of_dataset(hub), PROCESSOR)
    assert len(first.read(RATE)) == 800
    with pytest.raises(ConfigError, match="row 2 is sampled at 8000 Hz"):
        second.read(RATE)


def test_languages_by_name_and_by_code(folder):
    for language in ("fr", "French", "en"):
        assert len(read_speech(of_folder(folder, language=language), PROCESSOR)) == 3
    assert "evaluate.wer.language=german" in in_one_line(of_folder(folder, language="german"))


@pytest.mark.parametrize("package", ["jiwer", "soundfile"])
def test_a_missing_package(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {package}" in in_one_line(of_folder(folder))


def test_a_model_that_hears_nothing(folder, tokenizer):
    assert "wer needs a speech_seq2seq model" in in_one_line(of_folder(folder), tokenizer)
