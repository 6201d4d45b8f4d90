"""Text that a model writes itself: exact, the same every time, kept, and nobody else's settings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lillama.config import (
    GeneratedDataConfig,
    MixedDataConfig,
    ModelConfig,
    Opening,
    PartConfig,
    Source,
    Weights,
    WriteConfig,
)
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError, DivergedError
from lillama.data.generated import Writer, generated_blocks
from lillama.data.mixed import text_blocks
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.source import ModelSource
from tests.conftest import TINY_LLAMA
from tests.families import tiny

TOKENIZER = byte_tokenizer()
MODEL = ModelConfig(name="tiny", weights=Weights.random, architecture=dict(TINY_LLAMA), device="cpu")


def writer(model, seed=0):
    return Writer(ModelSource(MODEL, Path()), seed, lambda: model)


def config(write=None, **options):
    asked = WriteConfig(**{"batch_size": 3, **(write or {})})
    return GeneratedDataConfig(**{"tokens": 70, "seq_len": 16, "write": asked, **options})


def written(tmp_path, model, settings=None):
    return generated_blocks(settings or config(), TOKENIZER, Cache(tmp_path), writer(model))


def test_the_budget_is_exact_and_every_text_begins_as_asked(tmp_path, tiny_model):
    found = written(tmp_path, tiny_model)
    assert found.ids.shape == (5, 16)
    assert found.lengths.tolist() == [16, 16, 16, 16, 6]
    assert set(found.ids[:, 0]) == {TOKENIZER.bos_token_id}
    other = written(tmp_path, tiny_model, config({"opening": Opening.token}))
    assert set(other.ids[:, 0]) == {TOKENIZER.bos_token_id}
    assert len(set(other.ids[:, 1])) > 1
    assert min(other.ids[:, 1]) >= 4, "no special token is drawn"
    assert len({tuple(row) for row in found.ids}) == 5, "no two texts are alike"


def test_it_is_the_same_text_every_time_and_written_once(tmp_path, tiny_model):
    torch.manual_seed(1)
    first = written(tmp_path / "one", tiny_model)
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following), "the run's own random numbers stay as they are"
    assert written(tmp_path / "two", tiny_model).hash == first.hash
    held = generated_blocks(
        config(),
        TOKENIZER,
        Cache(tmp_path / "one"),
        Writer(ModelSource(MODEL, Path()), 0, lambda: pytest.fail("loaded")),
    )
    np.testing.assert_array_equal(held.ids, first.ids)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"tokens": 71},
        {"seq_len": 17},
        {"write": {"temperature": 0.5}},
        {"write": {"opening": Opening.token}},
    ],
    ids=str,
)
def test_whatever_it_depends_on_is_part_of_its_key(tmp_path, tiny_model, change):
    first = written(tmp_path, tiny_model)
    assert written(tmp_path, tiny_model, config(**change)).hash != first.hash


def test_another_model_writes_anew(tmp_path, tiny_model):
    first = written(tmp_path, tiny_model)
    other = tiny("gpt2", vocab_size=260)
    assert generated_blocks(config(), TOKENIZER, Cache(tmp_path), writer(other, seed=1)).hash != first.hash


def test_the_models_own_settings_of_generation_do_not_count(tmp_path, tiny_model):
    first = written(tmp_path / "one", tiny_model)
    own = tiny_model.generation_config
    own.update(do_sample=False, top_k=1, repetition_penalty=9.0, eos_token_id=list(range(260)), max_length=3)
    assert written(tmp_path / "two", tiny_model).hash == first.hash
    assert tiny_model.generation_config is own


def test_a_low_temperature_writes_what_is_likeliest(tmp_path, tiny_model):
    found = written(tmp_path, tiny_model, config({"temperature": 1e-4}, tokens=16))
    ids = torch.from_numpy(found.ids).long()
    with torch.no_grad():
        likeliest = tiny_model(ids).logits.argmax(-1)
    assert torch.equal(ids[:, 1:], likeliest[:, :-1])


@pytest.mark.parametrize("family", ["mixtral", "mamba", "gpt2"])
def test_every_kind_of_decoder_writes(tmp_path, family):
    found = written(tmp_path, tiny(family, vocab_size=260), config(tokens=20, seq_len=8))
    assert found.tokens == 20


def test_logits_that_are_not_finite_stop_it(tmp_path, tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = torch.nan
    with pytest.raises(DivergedError, match="data: the logits after 1 tokens are not finite"):
        written(tmp_path, tiny_model)


def test_a_tokenizer_without_a_first_token_says_so(tmp_path, tiny_model):
    bare = byte_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ConfigError, match=r"data\.write\.opening=bos: .*give token"):
        generated_blocks(config(), bare, Cache(tmp_path), writer(tiny_model))


def test_it_may_be_a_part_of_a_mix(tmp_path, tiny_model):
    (tmp_path / "a.txt").write_text("a" * 200)
    own = PartConfig(source=Source.generated, share=0.5, write=WriteConfig(batch_size=2))
    text = PartConfig(source=Source.local, path=str(tmp_path / "a.txt"), share=0.5)
    mix = MixedDataConfig(parts={"own": own, "text": text}, tokens=64, seq_len=16)
    found = text_blocks(mix, TOKENIZER, Cache(tmp_path / "cache"), writer(tiny_model))
    assert found.tokens == 64
    assert (found.ids[:, 0] == TOKENIZER.bos_token_id).tolist() == [True, False, True, False]
