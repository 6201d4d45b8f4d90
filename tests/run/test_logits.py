"""Fine-tuning on the dense model's logits, on the command line: in a run that compresses, and of a checkpoint."""

import shutil

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from lillama.config import ModelConfig, Weights
from lillama.core.results import read_json
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.source import ModelSource
from lillama.run.pipeline import run
from tests.checkpoints import same, weights
from tests.conftest import TINY_LLAMA, TINY_RUN, composed
from tests.marks import long_unless
from tests.run.test_tuning import ALONE, KL, TUNED, WHOLE, cut_after

START = "stages=[plan,init,finetune,perplexity]"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return (*TINY_RUN, *TUNED, f"cache_dir={tmp_path_factory.mktemp('cache')}")


@pytest.mark.parametrize(
    ("train", "stages"),
    long_unless(
        lambda train, stages: (train == "all") == (stages == START),
        [(train, stages) for train in ("factors", "all") for stages in (START, WHOLE)],
    ),
)
def test_a_compressed_model_learns_from_the_dense_one_wherever_that_is(words, cli, tmp_path, stages, train):
    """In bfloat16 as well; and where the dense blocks stay in host memory, the same comes out."""
    larger = ("+model.architecture.initializer_range=0.2", "finetune.epochs=2", "finetune.lr=1e-3")
    every = (*words, *KL, *larger, stages, "model.dtype=bfloat16", f"finetune.train={train}")
    for offload in ("false", "true"):
        out = tmp_path / offload
        status, _, err = cli(*every, f"model.offload={offload}", f"hydra.run.dir={out}")
        if offload == "true" and train == "all":
            assert (status, "model.offload=true: fine-tuning has the whole model" in err) == (2, True)
            return
        assert status == 0, err
        losses = [loss for _, loss in read_json(out / "results.json")["finetune"]["loss"]]
        assert sum(losses[-8:]) < sum(losses[:8]), "the last time through the text and the first"
    assert same(weights(tmp_path / "false"), weights(tmp_path / "true"))
    card = (tmp_path / "true" / "checkpoint" / "README.md").read_text()
    assert ("distilled block by block" in card) == (stages != START), "only what was run is told of"


def test_without_a_distillation_it_goes_on_to_the_same_bit_too(words, tmp_path, monkeypatch):
    config = composed(*words, *KL, "stages=[plan,init,finetune]", "snapshot.every_steps=2")
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_after(patch, 5)
        run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    """A finished checkpoint, the words of a run on it, and the folder of the dense model."""
    folder = tmp_path_factory.mktemp("made")
    model = ModelConfig(name="tiny", weights=Weights.random, architecture=dict(TINY_LLAMA), device="cpu")
    ModelSource(model, folder).load(seed=0).save_pretrained(folder / "dense")
    byte_tokenizer().save_pretrained(folder / "dense")
    rest = [word for word in words if not word.startswith(("model=", "strategy"))]
    of_folder = ("model=hub", f"model.path={folder / 'dense'}", *rest)
    compress = (*of_folder, "strategy=uniform", "save_checkpoint=true", "stages=[plan,init]")
    run(composed(*compress), folder / "made")
    return (*of_folder, f"model.path={folder / 'made' / 'checkpoint'}", ALONE), folder / "dense"


@pytest.mark.parametrize("measured_too", [True, False])
def test_a_finished_checkpoint_learns_from_the_baseline(made, cli, tmp_path, measured_too):
    every, dense = made
    out = tmp_path / "run"
    own = (*KL, f"evaluate.baseline={dense}", f"evaluate.dense={measured_too}")
    status, _, err = cli(*every, *own, f"hydra.run.dir={out}")
    assert status == 0, err
    result = read_json(out / "results.json")
    assert set(result["perplexity"]) == {"end", "finetuned"} | ({"dense"} if measured_too else set())
    loss = result["finetune"]["loss"]
    assert loss[-1][1] < loss[0][1]
    assert "in its factors on the dense model's logits" in (out / "checkpoint" / "README.md").read_text()


def test_a_teacher_that_cannot_teach_is_one_line_before_a_model_is_loaded(made, cli, tmp_path, monkeypatch):
    every, dense = made
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    checkpoint = dense.parent / "made" / "checkpoint"
    others = {"kind": "has another tokenizer", "wide": "has 264 logits", "deep": "has other blocks"}
    for name, change in (("wide", {"vocab_size": 264}), ("deep", {"num_hidden_layers": 3})):
        other = AutoModelForCausalLM.from_config(LlamaConfig(**{**TINY_LLAMA, **change}))
        other.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    shutil.copytree(dense, tmp_path / "kind")
    renamed = byte_tokenizer()
    renamed.add_tokens(["<other>"])
    renamed.save_pretrained(tmp_path / "kind")
    said = {str(tmp_path / name): words for name, words in others.items()}
    for base, words in {**said, str(checkpoint): "is compressed itself"}.items():
        status, _, err = cli(*every, *KL, f"evaluate.baseline={base}", f"hydra.run.dir={tmp_path / 'run'}")
        assert (status, len(err.strip().splitlines())) == (2, 1), err
        assert words in err
    status, _, err = cli(*every, *KL, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert f"finetune.objective=kl: needs the dense model of {checkpoint}; name it by evaluate.baseline" in err
