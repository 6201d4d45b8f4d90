import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lillama.config import Scope, TargetsConfig
from lillama.core.errors import ConfigError
from lillama.model.targets import matches, model_shape
from tests.families import FAMILIES, tiny


def names(model, **chosen):
    return [target.name for target in model_shape(model, TargetsConfig(**chosen)).targets]


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_what_the_blocks_multiply_by(family):
    """Every target's shape is its weight's [out, in]; no router and no weight that is never called is among them."""
    model = tiny(family)
    shape = model_shape(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.targets
    for target in shape.targets:
        assert {"router", "gate", "dt_proj"}.isdisjoint(target.name.split("."))
        weight = dict(model.named_parameters()).get(target.name)
        if weight is None:
            weight = model.get_submodule(target.name).weight
        assert weight.numel() == target.parameters
        assert sorted(weight.shape[-2:]) == sorted(target.shape)


def test_shapes_are_those_of_the_map_whichever_way_it_is_stored():
    gpt2 = {target.name: target.shape for target in model_shape(tiny("gpt2")).targets}
    assert gpt2["transformer.h.0.attn.c_attn"] == (96, 32)
    gpt_oss = {target.name: target for target in model_shape(tiny("gpt_oss")).targets}
    fused = gpt_oss["model.layers.0.mlp.experts.gate_up_proj"]
    assert (fused.shape, fused.copies) == ((96, 32), 4)


def test_patterns_choose():
    model = tiny("jamba")
    assert {name.rpartition(".")[2] for name in names(model, include=["experts.*"])} == {"gate_up_proj", "down_proj"}
    assert names(model, include=["*.layers.0.*"], exclude=["mamba.*"]) == [
        "model.layers.0.feed_forward.gate_proj",
        "model.layers.0.feed_forward.up_proj",
        "model.layers.0.feed_forward.down_proj",
    ]
    hunyuan = tiny("hunyuan_v1_moe")  # its router is a linear
    assert names(hunyuan, include=["gate.*"])[0] == "model.layers.0.mlp.gate.wg"
    assert set(names(model)) - set(names(model, exclude=["q_proj"])) == {
        name for name in names(model) if name.endswith(".q_proj")
    }


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["nowhere", "proj", "model.layers.9.*", "dt_proj"])
def test_patterns_that_match_nothing_raise(key, pattern):
    with pytest.raises(ConfigError, match=f"model.targets.{key}: '{pattern}'.* matches nothing; there are down_proj"):
        names(tiny("jamba"), **{key: [pattern]})


def test_a_pattern_is_a_whole_name_or_what_follows_a_dot():
    assert matches("model.layers.0.mlp.up_proj", "up_proj")
    assert matches("model.layers.0.mlp.up_proj", "mlp.*")
    assert matches("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj")
    assert not matches("model.layers.0.mlp.up_proj", "p_proj")
    assert not matches("model.layers.10.mlp.up_proj", "model.layers.1.*")


@pytest.mark.parametrize("tied", [True, False])
def test_the_ends_are_targets_where_they_are_named(tied):
    model = tiny("llama", tie_word_embeddings=tied)
    both = names(model, include=["embed_tokens", "lm_head"])
    assert both == (["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"])
    assert names(model, include=["lm_head"]) == (["model.embed_tokens"] if tied else ["lm_head"])
    assert not {"model.embed_tokens", "lm_head"} & set(names(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_strategy_may_take_the_table_that_is_tied_to_the_head(tied):
    shape = model_shape(tiny("llama", tie_word_embeddings=tied))
    more = ["model.embed_tokens"] if tied else []
    assert [target.name for target in shape.with_table().targets] == [*more, *(t.name for t in shape.targets)]


@pytest.mark.parametrize("chosen", [{"include": ["up_proj"]}, {"exclude": ["embed_tokens"]}, {"exclude": ["lm_head"]}])
def test_no_strategy_takes_the_table_against_the_patterns(chosen):
    shape = model_shape(tiny("llama", tie_word_embeddings=True), TargetsConfig(**chosen))
    assert shape.with_table() == shape


def test_a_side_of_an_encoder_decoder():
    shape = model_shape(tiny("bart"))
    encoder, decoder = (shape.within(scope).targets for scope in (Scope.encoder, Scope.decoder))
    assert {*encoder, *decoder} == set(shape.targets)
    assert all(target.name.startswith("model.decoder.") for target in decoder)
    assert any("encoder_attn" in target.name for target in decoder)
    with pytest.raises(ConfigError, match=r"strategy\.scope=encoder: the model has no encoder"):
        model_shape(tiny("llama")).within(Scope.encoder)


def test_a_model_on_the_meta_device_will_do():
    with torch.device("meta"):
        meta = type(tiny("mixtral"))(tiny("mixtral").config)
    assert model_shape(meta) == model_shape(tiny("mixtral"))


def test_a_model_that_sees_too_is_refused_with_the_stacks_it_has():
    text = {**FAMILIES["gemma3_text"]}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ConfigError, match=r"one stack, or an encoder and a decoder, is needed; has \['model.vision"):
        model_shape(model)
