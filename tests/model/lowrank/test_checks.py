"""A crafted or damaged checkpoint is named, by every way of loading it; a KeyError tells nobody anything."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lillama import load_checkpoint, save_checkpoint
from lillama.config import ModelConfig
from lillama.core.errors import ConfigError
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank.lillama_checks import check_finite, check_groups, is_finite
from lillama.model.source import ModelSource
from tests.families import tiny
from tests.model.test_student import student_of

RANKS = {"model.layers.0.self_attn.k_proj": 3, "model.layers.2.mlp.down_proj": 13}
ONE = "model.layers.0.self_attn.k_proj"
WAYS = {
    "load_checkpoint": load_checkpoint,
    "from_pretrained": AutoModelForCausalLM.from_pretrained,
    "trust_remote_code": lambda folder: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    "run.py": lambda folder: ModelSource(ModelConfig(name="x", path=str(folder), device="cpu"), folder.parent).load(),
}
OURS = ("load_checkpoint", "run.py")  # what transformers alone stumbles over is transformers' own to tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A compressed checkpoint; nobody may change it."""
    folder = tmp_path_factory.mktemp("checks") / "whole"
    model = student_of(tiny("llama", vocab_size=260), RANKS).settle()
    save_checkpoint(model, byte_tokenizer(), folder, plan={"ranks": RANKS}, card="#")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be damaged; its weights are a link until they are rewritten."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in whole.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def rewrite(file, content):
    file.unlink()
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def config_with(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    rewrite(folder / "config.json", values)


ENTRIES = {
    "linear is a list": ({"linear": ["a", 3]}, "linear must map names to ranks"),
    "linear is a number": ({"linear": 3}, "linear must map names to ranks"),
    "a rank in quotes": ({"linear": {ONE: "3"}}, rf"linear\['{ONE}'\] must be a positive integer, and is '3'"),
    "a negative rank": ({"linear": {ONE: -3}}, "positive integer, and is -3"),
    "rank zero": ({"linear": {ONE: 0}}, "positive integer, and is 0"),
    "a broken rank": ({"linear": {ONE: 2.5}}, "positive integer, and is 2.5"),
    "a rank that is true": ({"linear": {ONE: True}}, "positive integer, and is True"),
    "no rank": ({"linear": {ONE: None}}, "positive integer, and is None"),
    "a huge rank": ({"linear": {ONE: 10**30}}, rf"of {ONE} is larger than its matrix \[16, 32\]"),
    "another rank": ({"linear": RANKS | {ONE: 4}}, rf"{ONE}\.A"),
    "a module that is not there": ({"linear": {"model.layers.9.x": 3}}, r"compresses model\.layers\.9\.x, which"),
    "the whole model": ({"linear": {"": 3}}, "LlamaForCausalLM is no linear"),
    "a norm": ({"linear": {"model.norm": 3}}, r"model\.norm: a LlamaRMSNorm is no linear"),
    "an embedding that is none": ({"embedding": {"lm_head": 3}}, "lm_head: a Linear is no embedding"),
    "experts that are a list": ({"experts": [1]}, "experts must map"),
    "experts without parameters": ({"experts": {"model.layers.0.mlp": 3}}, r"experts\.model\.layers\.0\.mlp must map"),
    "experts that are none": ({"experts": {"model.layers.0.mlp": {"down_proj": 3}}}, "LlamaMLP has no fused experts"),
    "a version in quotes": ({"format_version": "2"}, "format_version is '2'"),
    "version null": ({"format_version": None}, "format_version is None"),
    "a bias of words": ({"without_bias": "no"}, "without_bias must be true or false"),
    "a stock quantizer of words": ({"stock": "int8"}, "stock is no quantizer's"),
    "a stock quantizer without a method": ({"stock": {"bits": 8}}, "stock is no quantizer's"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_damaged_entry_is_named(folder, entry, way):
    changes, said = ENTRIES[entry]
    config_with(folder, lambda values: values["quantization_config"].update(changes))
    with pytest.raises((ValueError, RuntimeError), match=said) as caught:
        WAYS[way](folder)
    if way in OURS:
        assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


FILES = {
    "no JSON": "{",
    "empty": "",
    "a list": "[]",
    "a word": '"llama"',
    "null": "null",
}
WHOLES = {
    "the ranks are gone": lambda v: v.pop("quantization_config"),
    "the ranks are a list": lambda v: v.update(quantization_config=[1]),
    "the ranks are a word": lambda v: v.update(quantization_config="lillama"),
    "the ranks are empty": lambda v: v.update(quantization_config={"quant_method": "lillama"}),
    "no method": lambda v: v["quantization_config"].pop("quant_method"),
    "an unknown family": lambda v: v.update(model_type="nonsense"),
    "no family": lambda v: v.pop("model_type"),
    "a family that is a number": lambda v: v.update(model_type=3),
    "classes that are a number": lambda v: v.update(architectures=3),
    "a size of words": lambda v: v.update(hidden_size="wide"),
    "a negative size": lambda v: v.update(hidden_size=-32),
    "fewer blocks": lambda v: v.update(num_hidden_layers=2),
    "more blocks": lambda v: v.update(num_hidden_layers=5),
    "other words": lambda v: v.update(vocab_size=100),
    "an unknown activation": lambda v: v.update(hidden_act="nonsense"),
}


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("content", FILES)
def test_a_config_that_is_none_is_told_in_one_line(folder, content, way):
    rewrite(folder / "config.json", FILES[content])
    with pytest.raises(ConfigError, match=str(folder)) as caught:
        WAYS[way](folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("change", WHOLES)
def test_a_config_of_another_model_is_told_in_one_line(folder, change, way):
    config_with(folder, WHOLES[change])
    with pytest.raises(ConfigError, match=str(folder)) as caught:
        WAYS[way](folder)
    assert "\n" not in str(caught.value)


WEIGHTS = {
    "NaN in a factor": (f"{ONE}.A.weight", lambda t: t.fill_(torch.nan), "holds NaN or infinity"),
    "infinity in a norm": ("model.norm.weight", lambda t: t.fill_(torch.inf), "holds NaN or infinity"),
    "another shape": (f"{ONE}.B.weight", lambda t: t[:2].clone(), ""),
    "another shape of a dense one": ("model.layers.1.mlp.up_proj.weight", lambda t: t[:2].clone(), ""),
    "a dense one is lost": ("model.layers.1.mlp.up_proj.weight", lambda t: None, ""),
    "the norm at the end is lost": ("model.norm.weight", lambda t: None, ""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", WEIGHTS)
def test_a_damaged_weight_is_named(folder, damage, way):
    name, change, said = WEIGHTS[damage]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors.pop(name))
    file.unlink()
    save_file(tensors if changed is None else tensors | {name: changed}, file, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=name.replace(".", r"\.")) as caught:
        WAYS[way](folder)
    assert said in str(caught.value)
    if way in OURS:
        assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_whole_loads(whole, way):
    assert WAYS[way](whole) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_nan_is_seen_in_every_dtype_and_nothing_else(dtype):
    values = torch.ones(3, 5).to(dtype)
    assert is_finite(values)
    values.view(torch.uint8 if dtype.itemsize == 1 else torch.int16 if dtype.itemsize == 2 else torch.int32)[1, 2] = -1
    assert not is_finite(values)
    assert is_finite(torch.empty(0)) and is_finite(torch.ones(2, dtype=torch.int8)) and is_finite(values.to("meta"))


def test_a_buffer_of_nan_is_named_and_one_of_infinity_masks():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(module)
    module.register_buffer("sines", torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="buffer sines holds NaN"):
        check_finite(module)


@pytest.mark.parametrize(
    "stock",
    [
        SimpleNamespace(group_size=32),
        SimpleNamespace(quant_type=SimpleNamespace(group_size=32)),
        SimpleNamespace(quant_type=SimpleNamespace(granularity=SimpleNamespace(group_size=32))),
    ],
    ids=["its own", "torchao", "torchao's granularity"],
)
def test_groups_that_do_not_divide_a_rank_are_told_with_the_rounding_that_helps(stock):
    check_groups({"a.k": 32, "a.v": 64}, stock)
    check_groups({"a.k": 33}, SimpleNamespace(group_size=None))
    check_groups({"a.k": 33}, SimpleNamespace(group_size=32, modules_to_not_convert=["k"]))
    with pytest.raises(
        ValueError, match=r"groups of 32 .* 1 of 2 matrices \(rank 33 of a\.k\).* strategy\.round_to=32"
    ):
        check_groups({"a.k": 33, "a.v": 64}, stock)


def test_a_checkpoint_is_not_quantized_in_groups_that_do_not_fit(whole):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    stock = TorchAoConfig(quantization.Int4WeightOnlyConfig(group_size=32))
    with pytest.raises(ConfigError, match=rf"groups of 32 do not divide .*rank 3 of {ONE}.* strategy\.round_to=32"):
        load_checkpoint(whole, quantization_config=stock)
