"""What runs, and what keeps blocks from being distilled one by one, is seen from shapes alone."""

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import lillama
from lillama.config import TargetsConfig
from lillama.core.errors import ConfigError
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank import LowRank
from lillama.model.observe import called_modules
from lillama.model.targets import model_shape
from tests.families import BOTH_SIDES, ENCODER, EVERYDAY, FAMILIES, GROUPED, tiny
from tests.marks import long_unless

SHARES_KEYS = {**GROUPED, "head_dim": 8, "num_kv_shared_layers": 1, "num_hidden_layers": 3}
LAYERED = {"layer_types": ["full_attention"] * 3, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
DECODER = {"is_decoder": True, "is_encoder_decoder": False}
LEANING = {  # why blocks cannot be distilled one by one
    "albert": ({**ENCODER, "embedding_size": 16}, AutoModelForMaskedLM, "a pass runs block 0 3 times"),
    "gemma4_text": ({**SHARES_KEYS, **LAYERED}, AutoModelForCausalLM, "takes shared_kv_states, which lower blocks"),
    "gemma3n_text": (
        {**SHARES_KEYS, **LAYERED, "num_kv_shared_layers": 0, "altup_num_inputs": 2, "laurel_rank": 4},
        AutoModelForCausalLM,
        r"block 0 gives hidden states \[2, 5, 4, 32\], not \[batch, tokens, features\]",
    ),
    "xlm": ({"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 64}, AutoModelForMaskedLM, "changes the hidden"),
    "funnel": (
        {"d_model": 32, "d_head": 8, "n_head": 4, "d_inner": 48, "vocab_size": 64, "block_sizes": [2, 2]},
        AutoModelForMaskedLM,
        "a pass does not run block 0|block 1 takes another argument",
    ),
}


def meta(family, fields, auto):
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(family, **fields))


@pytest.mark.parametrize("family", long_unless(EVERYDAY.__contains__, FAMILIES))
def test_every_matrix_of_an_ordinary_family_is_called(family):
    model = tiny(family)
    called = called_modules(model)
    assert called is not None
    shape = model_shape(model)
    assert family == "zamba2" or not shape.idle
    assert all("adapter_list" in name for name in shape.idle)
    homes = {t.name if t.name in called else t.name.rpartition(".")[0] for t in shape.targets}
    assert homes <= called
    assert called == called_modules(copy.deepcopy(model).to("meta"))


@pytest.mark.parametrize("family", LEANING)
def test_blocks_that_lean_on_one_another_are_refused_by_their_cause_before_any_weight_is_there(family):
    fields, auto, why = LEANING[family]
    with pytest.raises(ConfigError, match=f"(?s){why}.*; its blocks cannot be distilled one by one"):
        model_shape(meta(family, fields, auto))


@pytest.mark.parametrize(
    ("family", "auto", "part", "fields"),
    [
        ("bart", AutoModelForCausalLM, ".encoder_attn.", {**BOTH_SIDES, **DECODER, "max_position_embeddings": 64}),
        ("trocr", AutoModelForCausalLM, ".encoder_attn.", {**BOTH_SIDES, "max_position_embeddings": 64}),
        ("longformer", AutoModelForMaskedLM, "_global", {**ENCODER, "attention_window": 4}),
    ],
)
def test_matrices_that_never_run_stay_dense_and_are_named(family, auto, part, fields, caplog):
    with caplog.at_level(logging.INFO, "lillama"):
        shape = model_shape(meta(family, fields, auto))
    assert shape.idle
    assert all(part in name for name in shape.idle)
    assert not any(part in target.name for target in shape.every)
    assert "never run and stay dense" in caplog.text
    pattern = f"*{part.strip('.')}*"
    with pytest.raises(ConfigError, match="only names matrices that never run"):
        model_shape(meta(family, fields, auto), TargetsConfig(include=[pattern]))


def test_a_decoder_without_its_encoder_is_compressed(tmp_path):
    model = tiny("bart", **DECODER, vocab_size=300, scale_embedding=False)
    dense = sum(p.numel() for p in model.parameters())
    texts = ["a few words. " * 40]
    lillama.compress(model, byte_tokenizer(), texts, tokens=128, seq_len=32, progress=False)
    assert sum(p.numel() for p in model.parameters()) <= 0.8 * dense
    names = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    assert names
    assert not any("encoder_attn" in name for name in names)
    model.save_pretrained(tmp_path)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_weights_of_several_blocks_are_counted_once_and_stay_as_they_are(tmp_path):
    """Zamba2's attention blocks hold the same matrices."""
    model = tiny("zamba2", vocab_size=300)
    shape = model_shape(model)
    names = {name for name in shape.shared if "shared_transformer" in name}
    assert names
    assert {*shape.shared} == names
    assert {name.split(".")[2] for name in names} == {"1", "3"}
    before = copy.deepcopy(model.model.layers[1].shared_transformer.state_dict())
    dense = sum(p.numel() for p in model.parameters())
    lillama.compress(model, byte_tokenizer(), ["a few words. " * 40], tokens=128, seq_len=32, progress=False)
    assert sum(p.numel() for p in model.parameters()) <= 0.8 * dense
    first, second = (model.model.layers[index].shared_transformer.state_dict() for index in (1, 3))
    for name, value in before.items():
        assert torch.equal(first[name], value)
        assert first[name].data_ptr() == second[name].data_ptr()
    model.save_pretrained(tmp_path)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
        torch.testing.assert_close(loaded, model(ids).logits)


def test_one_module_at_two_places_is_shared_too():
    model = tiny("llama")
    layers = model.model.layers
    layers[2].mlp.up_proj = layers[0].mlp.up_proj
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    shape = model_shape(model)
    assert {name.split(".", 3)[3] for name in shape.shared} == {"mlp.up_proj", "mlp.down_proj"}
    assert not {*shape.shared} & {target.name for target in shape.every}
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_the_model_is_left_as_it_is(tiny_model):
    before = {name: p.data_ptr() for name, p in tiny_model.named_parameters()}
    hooks = sum(len(module._forward_pre_hooks) for module in tiny_model.modules())
    assert called_modules(tiny_model)
    assert {name: p.data_ptr() for name, p in tiny_model.named_parameters()} == before
    assert sum(len(module._forward_pre_hooks) for module in tiny_model.modules()) == hooks
