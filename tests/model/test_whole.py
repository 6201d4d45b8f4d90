"""What a checkpoint lacks, or holds besides, is named; nothing is filled in at random."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lillama.config import Dtype, ModelConfig
from lillama.core.errors import ConfigError
from lillama.model.source import ModelSource
from lillama.model.targets import model_shape
from tests.families import tiny

NAMES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a compiled stack": lambda name: name.replace("model.layers", "model._orig_mod.layers"),
    "compiled blocks": lambda name: re.sub(r"layers\.(\d+)\.", r"layers.\1._orig_mod.", name),
    "FSDP": lambda name: re.sub(r"layers\.(\d+)\.", r"layers.\1._fsdp_wrapped_module.", name),
    "Lightning": lambda name: f"model.{name}",
}


def config_of(folder, **changes):
    return ModelConfig(**{"name": "x", "path": str(folder), "device": "cpu", **changes})


def edit(folder, change):
    """The folder with its tensors changed in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refused(folder, tmp_path, **changes):
    """The one line that loading the folder ends in."""
    with pytest.raises(ConfigError) as caught:
        ModelSource(config_of(folder, **changes), tmp_path).load()
    said = str(caught.value)
    assert said.startswith(f"model.path={folder}") and "\n" not in said
    return said


@pytest.fixture
def folder(tmp_path):
    """A dense model with an untied head."""
    tiny("qwen3").save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("family", ["qwen3", "t5", "mixtral"])
@pytest.mark.parametrize("wrapped", NAMES)
def test_the_names_that_a_wrapper_gives_are_read_and_not_saved_again(family, wrapped, tmp_path, caplog):
    model, folder, again = tiny(family), tmp_path / "dense", tmp_path / "again"
    model.save_pretrained(folder)
    known = load_file(folder / "model.safetensors")
    save_file(
        {NAMES[wrapped](name): value for name, value in known.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    loaded = ModelSource(config_of(folder), tmp_path).load()
    theirs = loaded.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    loaded.save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == known.keys()


CHANGES = {
    "a block": (
        lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name],
        r"11 are missing \(model\.layers\.1",
    ),
    "an untied head": (lambda t: t.pop("lm_head.weight"), r"1 are missing \(lm_head\.weight\)"),
    "a norm": (lambda t: t.pop("model.norm.weight"), r"missing \(model\.norm\.weight\)"),
    "a bias too many": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(48)}),
        r"no place in it \(model\.layers\.0\.mlp\.up_proj\.bias\)",
    ),
    "a bias of the head": (lambda t: t.update({"lm_head.bias": torch.ones(64)}), r"no place in it \(lm_head\.bias\)"),
    "a block too many": (
        lambda t: t.update({n.replace("rs.1", "rs.3"): v.clone() for n, v in list(t.items()) if ".layers.1." in n}),
        r"11 have no place in it \(model\.layers\.3",
    ),
    "another shape": (
        lambda t: t.update({"model.norm.weight": torch.ones(5)}),
        r"another shape \(model\.norm\.weight \[5\], not \[32\]\)",
    ),
    "names of nobody": (
        lambda t: [t.update({f"net.backbone.{name}": t.pop(name)}) for name in list(t)],
        r"are missing \(lm_head\.weight",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit_are_named(folder, tmp_path, change):
    edit(folder, CHANGES[change][0])
    assert re.search(CHANGES[change][1], refused(folder, tmp_path))


def test_another_tasks_head_and_tables_of_old_versions_are_left_out(folder, tmp_path, caplog):
    edit(
        folder,
        lambda t: t.update(
            {"value_head.summary.weight": torch.ones(1), "model.layers.0.self_attn.masked_bias": torch.ones(1)}
        ),
    )
    ModelSource(config_of(folder), tmp_path).load()
    assert "2 weights are not used by Qwen3ForCausalLM" in caplog.text


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder, tmp_path, value, offload):
    edit(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"][3, 7].fill_(value))
    said = refused(folder, tmp_path, offload=offload)
    assert "model.layers.1.mlp.down_proj.weight holds NaN or infinity" in said


def test_a_weight_that_a_narrow_dtype_cannot_hold_is_named_with_it(folder, tmp_path):
    edit(folder, lambda t: t["model.norm.weight"][3].fill_(1e5))
    assert "model.norm.weight holds NaN or infinity (float16)" in refused(folder, tmp_path, dtype=Dtype.float16)
    ModelSource(config_of(folder, dtype=Dtype.bfloat16), tmp_path).load()


QUANTIZED = {
    "bitsandbytes 8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bit"),
    "bitsandbytes 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bit"),
    "an older bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes or another, 4 bit"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": "int4"}}, "torchao"),
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bit"),
    "AWQ": ({"quant_method": "awq", "bits": 4}, "awq, 4 bit"),
    "FP8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "compressed-tensors": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    "MXFP4": ({"quant_method": "mxfp4"}, "mxfp4"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_refused_before_anything_is_loaded(folder, tmp_path, kind):
    file, (entry, method) = folder / "config.json", QUANTIZED[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": entry}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"weights are quantized \({method}\); give the original") as caught:
        model_shape(ModelSource(config_of(folder), tmp_path).meta)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("compression_config", None),
        ("quantization", None),
        (None, "quantize_config.json"),
        (None, "hf_quant_config.json"),
    ],
)
def test_so_are_those_that_say_it_elsewhere(folder, tmp_path, entry, file):
    if entry is not None:
        place = folder / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {entry: {"group_size": 64, "bits": 4}}))
    else:
        (folder / file).write_text("{}")
    with pytest.raises(ConfigError, match="weights are quantized"):
        model_shape(ModelSource(config_of(folder), tmp_path).meta)


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "beside a model"])
def test_an_adapter_is_refused_with_its_base(folder, tmp_path, whole):
    place = folder if whole else tmp_path / "adapter"
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/base"}))
    with pytest.raises(ConfigError, match=r"is a PEFT adapter of a/base; .*merge_and_unload"):
        model_shape(ModelSource(config_of(place), tmp_path).meta)
