import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lillama
import lillama.init.feature
from lillama.config import (
    BottomConfig,
    FactorForm,
    GeneratedDataConfig,
    SpectrumConfig,
    SvdConfig,
    TargetsConfig,
)
from lillama.core.errors import ConfigError
from lillama.data.sources import stdlib_topics
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank import LowRank
from lillama.run.pipeline import run
from tests.conftest import TINY_RUN, composed
from tests.families import tiny

TEXTS = [row["text"] for row in stdlib_topics("train", "data")]
QUICK = {"tokens": 1024, "seq_len": 64, "progress": False}


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.mark.parametrize("form", [FactorForm.pivoted, pytest.param(FactorForm.plain, marks=pytest.mark.long)])
def test_one_call_gives_what_the_command_line_gives(tmp_path, form):
    """The same texts and the recommended settings: the same weights, bit for bit."""
    own = ("strategy", "preset")
    settings = [*(word for word in TINY_RUN if not word.startswith(own)), f"factors={form.name}", "data=stdlib_docs"]
    tokens = ("data.tokens=1024", "finetune.data.tokens=1024", "evaluate.perplexity.max_tokens=64")
    config = composed(*settings, *tokens)
    run(config, tmp_path / "run")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    from lillama.model.source import ModelSource

    dense = ModelSource(config.model, tmp_path).load(seed=0)
    own = lillama.compress(dense, byte_tokenizer(), TEXTS, factors=form, **QUICK)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in own.state_dict().items())


def test_the_result_is_smaller_trainable_and_saves_itself(model, tmp_path):
    before = sum(p.numel() for p in model.parameters())
    compressed = lillama.compress(model, byte_tokenizer(), TEXTS, reduction=0.3, **QUICK)
    assert compressed is model
    assert sum(p.numel() for p in compressed.parameters()) <= 0.7 * before
    assert all(p.requires_grad for p in compressed.parameters())
    compressed.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("some text", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, compressed(ids).logits)


@pytest.mark.parametrize("family", ["t5", "bert", "mixtral", pytest.param("falcon_mamba", marks=pytest.mark.long)])
def test_other_families_and_rows_of_other_kinds(family):
    rows = [{"instruction": "say", "output": text} for text in TEXTS[:20]]
    model = tiny(family, vocab_size=300)
    lillama.compress(model, byte_tokenizer(), rows, init=SvdConfig(), **QUICK)
    assert any(isinstance(module, LowRank) for module in model.modules())


def test_strategy_and_targets_are_the_callers_choice(model):
    lillama.compress(
        model,
        byte_tokenizer(),
        TEXTS,
        strategy=BottomConfig(reduction=0.1, k=8, m=4),
        targets=TargetsConfig(include=["mlp.*"]),
        **QUICK,
    )
    replaced = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    assert replaced
    assert all(".mlp." in name for name in replaced)


def test_a_plan_by_spectra_takes_no_moment_twice(model, monkeypatch):
    names, take = [], lillama.init.feature.input_moments

    def moments(model, group, *rest, **options):
        names.extend(group)
        return take(model, group, *rest, **options)

    monkeypatch.setattr(lillama.init.feature, "input_moments", moments)
    before = sum(p.numel() for p in model.parameters())
    lillama.compress(model, byte_tokenizer(), TEXTS, strategy=SpectrumConfig(reduction=0.3), **QUICK)
    assert sum(p.numel() for p in model.parameters()) <= 0.7 * before
    assert len(names) == len(set(names)) == 28


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 0.99}, "out of reach"),
        ({"tokens": 10**9}, "tokens=1000000000: the texts hold only"),
        ({"texts": "one string"}, "not one string"),
        ({"texts": []}, "no token"),
        ({"texts": {"text": TEXTS}}, "not one dict"),
        ({"texts": b"bytes"}, "not one bytes"),
        ({"texts": [{"nothing": 1}]}, "texts: row 1"),
        ({"data": GeneratedDataConfig()}, "none are generated"),
        ({"texts": [*TEXTS, None]}, rf"texts: row {len(TEXTS) + 1}: must be an object with columns, not NoneType"),
        ({"texts": [b"bytes"]}, "texts: row 1: must be an object with columns, not bytes"),
        ({"targets": TargetsConfig(include=["nowhere"])}, "'nowhere' matches nothing"),
    ],
)
def test_bad_requests_leave_the_model_alone(model, options, message):
    before = copy.deepcopy(model.state_dict())
    arguments = {"texts": TEXTS, **QUICK, **options}
    with pytest.raises(ConfigError, match=message):
        lillama.compress(model, byte_tokenizer(), **arguments)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("model", "message"),
    [(tiny("llama").half(), "underflow in float16"), (tiny("whisper"), "by run.py with data=speech")],
    ids=["float16", "speech"],
)
def test_models_that_cannot_be_compressed_here(model, message):
    with pytest.raises(ConfigError, match=message):
        lillama.compress(model, byte_tokenizer(), TEXTS, **QUICK)


def test_a_compressed_model_is_not_compressed_again(model):
    lillama.compress(model, byte_tokenizer(), TEXTS, **QUICK)
    with pytest.raises(ConfigError, match="compressed already"):
        lillama.compress(model, byte_tokenizer(), TEXTS, **QUICK)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_all_the_text_there_is(model):
    lillama.compress(model, byte_tokenizer(), ["a few words. " * 30], tokens=None, seq_len=64, progress=False)


def test_a_last_sequence_too_short_for_a_decoder_teaches_it_nothing():
    model = tiny("t5", vocab_size=300)
    lillama.compress(model, byte_tokenizer(), TEXTS, tokens=129, seq_len=64, progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_how_factors_are_stored_may_be_named_by_a_word(model):
    with pytest.raises(ConfigError, match="factors=thin: is none of plain, pivoted"):
        lillama.compress(model, byte_tokenizer(), TEXTS, factors="thin", **QUICK)
    rich = lillama.compress(copy.deepcopy(model), byte_tokenizer(), TEXTS, factors="pivoted", **QUICK)
    assert all(module.pivoted for module in rich.modules() if isinstance(module, LowRank))
