"""Whole runs of every kind of model on the command line, and of what is compressed in it."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lillama import load_checkpoint
from lillama.config import FactorForm, PerplexityConfig
from lillama.core.results import read_json
from lillama.evaluate.perplexity import measured_text, perplexity
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank import LowRankEmbedding, LowRankLinear
from tests.conftest import TINY_RUN, composed
from tests.families import tiny
from tests.marks import long_unless

QUICK = (*[word for word in TINY_RUN if not word.startswith(("model=", "strategy"))], "data.tokens=1024")
SMALL_RANKS = ("strategy.k=8", "strategy.m=8")
RUNS = {
    "experts": ["model=tiny_mixtral"],
    "experts only": ["model=tiny_mixtral", "model.targets.include=[experts.*]", "strategy=bottom", *SMALL_RANKS],
    "a dense projection": ["model=tiny_random", "model.targets.exclude=[q_proj,k_proj]"],
    "mamba": ["model=tiny_mamba", "strategy.reduction=0.1"],
    "encoder and decoder": ["model=tiny_t5"],
    "encoder only": ["model=tiny_t5", "strategy.scope=encoder", "strategy.reduction=0.1"],
    "decoder only": ["model=tiny_t5", "strategy.scope=decoder", "loss=student"],
    "everything": ["model=tiny_random", "model.targets.include=['*']", "strategy.reduction=0.3"],
    "head and embedding": ["model=inkubalm", "strategy=rank", "strategy.rank=11"],
}
TINY_INKUBALM = [
    "model.weights=random",
    "model.architecture.vocab_size=260",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=48",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.num_attention_heads=4",
    "model.architecture.num_key_value_heads=4",
]


ONCE = {(case, FactorForm.plain) for case in ("experts only", "encoder and decoder", "everything")}
ONCE |= {("mamba", FactorForm.pivoted), ("experts", FactorForm.pivoted)}
CASES = [(case, FactorForm.plain) for case in RUNS] + [(case, FactorForm.pivoted) for case in list(RUNS)[::3]]


@pytest.mark.parametrize(("case", "form"), long_unless(lambda case, form: (case, form) in ONCE, CASES), ids=str)
def test_a_run_ends_in_a_checkpoint_with_the_perplexity_that_was_measured(cli, tmp_path, case, form):
    more = TINY_INKUBALM if "model=inkubalm" in RUNS[case] else []
    words = (*QUICK, *RUNS[case], *more, f"factors={form.name}")
    status, _, err = cli(*words, f"hydra.run.dir={tmp_path}")
    assert status == 0, err
    result, plan = read_json(tmp_path / "results.json"), read_json(tmp_path / "plan.json")
    model = load_checkpoint(tmp_path / "checkpoint")
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]["compressed"]
    assert result["parameters"]["compressed"] < result["parameters"]["dense"]
    assert holds(tmp_path / "checkpoint") == (plan["parameters"], plan["indices"]["bytes"])
    assert plan["factors"] == form.name
    assert (plan["indices"]["bytes"] > 0) == (form is FactorForm.pivoted)
    settings: PerplexityConfig = composed(*words).evaluate.perplexity
    ids = measured_text(settings, AutoTokenizer.from_pretrained(tmp_path / "checkpoint")).ids
    assert perplexity(model, ids, seq_len=64) == pytest.approx(result["perplexity"]["end"], rel=1e-4)
    names = list(plan["ranks"])
    if case == "experts only":
        assert all(".experts." in name for name in names)
    if case == "a dense projection":
        assert not [name for name in names if name.endswith(("q_proj", "k_proj"))]
    if case.endswith(" only") and "t5" in RUNS[case][0]:
        assert {name.partition(".")[0] for name in names} == {case.removesuffix(" only")}
    if case == "everything":
        assert "model.embed_tokens" in names


def holds(folder):
    """The floating-point numbers in a checkpoint's files, and the bytes of what else they hold."""
    values = [value for file in folder.glob("*.safetensors") for value in load_file(file).values()]
    numbers = [value for value in values if value.is_floating_point()]
    return sum(value.numel() for value in numbers), sum(v.nbytes for v in values if not v.is_floating_point())


def test_an_encoder_is_distilled_without_a_perplexity(cli, tmp_path):
    tiny("bert", vocab_size=300).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    words = (*QUICK, "model=hub", f"model.path={tmp_path / 'bert'}", f"hydra.run.dir={tmp_path / 'run'}")
    status, _, err = cli(*words)
    assert status == 2
    assert "masked_lm model and writes no text, so not perplexity" in err
    status, _, err = cli(*words, "stages=[plan,init,distill]")
    assert status == 0, err
    assert type(load_checkpoint(tmp_path / "run" / "checkpoint")).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_inkubalms_way_takes_thirty_percent_off_the_embedding_and_the_head(cli, tmp_path, tied):
    """Appendix A.12 in small: most parameters are in the embedding; only it and the head become low-rank."""
    shape = [*TINY_INKUBALM, f"model.architecture.tie_word_embeddings={tied}", "model.architecture.vocab_size=800"]
    words = (*QUICK, "model=inkubalm", *shape, "strategy=uniform", "strategy.reduction=0.3", "data.tokens=2048")
    status, _, err = cli(*words, f"hydra.run.dir={tmp_path}", "evaluate.perplexity.max_tokens=2048")
    assert status == 0, err
    result, plan = read_json(tmp_path / "results.json"), read_json(tmp_path / "plan.json")
    assert result["reduction"]["realised"] == pytest.approx(0.3, abs=0.02)
    assert plan["block_indices"] == ([-1] if tied else [-1, 2])
    model = load_checkpoint(tmp_path / "checkpoint")
    assert isinstance(model.model.embed_tokens, LowRankEmbedding)
    assert isinstance(model.lm_head, LowRankLinear)
    assert (model.lm_head.A.weight is model.model.embed_tokens.A.weight) == tied
    assert not any(isinstance(module, LowRankLinear) for module in model.model.layers.modules())
    metrics = (tmp_path / "metrics.csv").read_text()
    assert "loss/block_-01" in metrics
    assert "loss/block_002" in metrics, "a tied head learns too"
    assert torch.isfinite(torch.tensor(result["perplexity"]["end"]))
