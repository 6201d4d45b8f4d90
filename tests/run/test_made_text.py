"""Texts that are made, on the command line: mixed of several, written by the dense model."""

import pytest

from lillama.core.results import read_json
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.source import ModelSource
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN
from tests.run.test_tuning import TUNED, WHOLE


@pytest.fixture
def words(tmp_path):
    return (*TINY_RUN, *TUNED, f"cache_dir={tmp_path / 'cache'}")


@pytest.fixture
def loaded(monkeypatch):
    """The paths of the models that were loaded for what they write, or to be compressed."""
    found, load = [], ModelSource.load

    def noting(source, **options):
        found.append(source.config.path)
        return load(source, **options)

    monkeypatch.setattr(ModelSource, "load", noting)
    return found


@pytest.mark.parametrize("kind", ["mixed", pytest.param("generated", marks=pytest.mark.long)])
def test_calibration_and_fine_tuning_take_what_is_made(words, cli, tmp_path, kind):
    own = ["data.seq_len=32", "finetune.data.seq_len=32", "data.tokens=512", "finetune.data.tokens=1024"]
    if kind == "mixed":
        own += ["data.parts.code.files=ab*.py", "finetune.data.parts.code.files=ab*.py"]
    every = (*words, f"data={kind}", f"finetune/data={kind}", *own, "finetune=kl", WHOLE)
    found = []
    for number in range(2):
        out = tmp_path / str(number)
        status, _, err = cli(*every, f"cache_dir={tmp_path / f'cache{number}'}", f"hydra.run.dir={out}")
        assert status == 0, err
        result = read_json(out / "results.json")
        assert (result["data"]["tokens"], result["finetune"]["data"]["tokens"]) == (512, 1024)
        found.append((result["data"]["hash"], weights(out)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


def test_a_plan_from_spectra_of_what_the_model_writes_loads_it_once(words, cli, tmp_path, loaded):
    rest = [word for word in words if not word.startswith("strategy")]
    every = (*rest, "data=generated", "data.seq_len=32", "strategy=spectrum", "stages=[plan,init]")
    status, _, err = cli(*every, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    assert len(loaded) == 1


def test_a_model_learns_from_what_its_baseline_writes(words, cli, tmp_path, tiny_model, loaded):
    for name in ("dense", "own"):
        tiny_model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    rest = [word for word in words if not word.startswith(("model=", "strategy"))]
    own = (
        "model=hub",
        f"model.path={tmp_path / 'own'}",
        f"evaluate.baseline={tmp_path / 'dense'}",
        "stages=[finetune]",
    )
    tuning = ("finetune/data=generated", "finetune.data.tokens=128")
    status, _, err = cli(*rest, *own, *tuning, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, err
    assert loaded == [str(tmp_path / name) for name in ("dense", "own", "dense")], "writes, learns, is measured"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data=generated data.seq_len=4096", "data.seq_len=4096: tiny_random writes at most 2048 tokens in a row"),
        ("data=generated model=tiny_t5", "data.source=generated: tiny_t5 is a seq2seq_lm model and writes no text"),
        ("data=mixed data.parts.code.source=generated model=tiny_t5", "data.source=generated: tiny_t5 is a seq2seq_lm"),
        ("data=mixed data.tokens=99_000 data.parts.code.files=abc.py", "data.parts.code.tokens=49"),
        ("data=mixed data.tokens=64", "comes to no block of data.tokens=64 with data.seq_len=64"),
    ],
)
def test_what_cannot_be_made_is_one_line_before_a_model_is_loaded(words, cli, tmp_path, loaded, *, change, said):
    given = [word for word in words if not (word.startswith("model=") and "model=" in change)]
    status, _, err = cli(*given, *change.split(), f"hydra.run.dir={tmp_path / 'run'}")
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert said in err
    assert not loaded
