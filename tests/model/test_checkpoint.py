import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lillama import load_checkpoint, save_checkpoint
from lillama.config import Dtype
from lillama.core.errors import ConfigError, WriteError
from lillama.model.checkpoint import check_saveable, check_space
from lillama.model.source import ModelSource
from tests.model.test_student import IDS, student_of

# In module order, which is not the alphabet's: config.json is written with sorted keys.
RANKS = {"model.layers.0.self_attn.k_proj": 3, "model.layers.0.mlp.up_proj": 7, "model.layers.2.mlp.down_proj": 13}
BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture(params=[Dtype.float32, Dtype.bfloat16], ids=lambda dtype: dtype.name)
def saved(request, tiny_config, tokenizer, tmp_path):
    """A compressed model with odd ranks, biases and dense matrices beside, and its folder."""
    tiny_config.architecture |= BIASED
    tiny_config.dtype = request.param
    model = ModelSource(tiny_config, tmp_path).load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    compressed = student_of(model, RANKS).settle()
    folder = tmp_path / "checkpoint"
    save_checkpoint(compressed, tokenizer, folder, plan={"ranks": RANKS}, card="# card")
    return compressed, folder


@torch.no_grad()
def test_loading_gives_identical_logits(saved):
    model, folder = saved
    loaded = load_checkpoint(folder, dtype=model.dtype)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)


@torch.no_grad()
def test_plain_from_pretrained_loads_it_and_saving_again_changes_nothing(saved, tmp_path):
    model, folder = saved
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    loaded.save_pretrained(tmp_path / "again")
    first = load_file(folder / "model.safetensors")
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert AutoTokenizer.from_pretrained(folder)("abc").input_ids


def test_the_folder_tells_its_ranks(saved):
    _, folder = saved
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "lillama"
    assert told["linear"] == RANKS
    assert json.loads((folder / "plan.json").read_text())["ranks"] == RANKS
    assert (folder / "generation_config.json").is_file()


def _edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


def test_a_newer_format_is_refused(saved):
    _, folder = saved
    _edit_config(folder, format_version=99)
    with pytest.raises(ValueError, match="format_version 99"):
        load_checkpoint(folder)


def test_an_older_format_is_read(saved):
    """Version 1 knew linears only."""
    model, folder = saved
    file = folder / "config.json"
    config = json.loads(file.read_text())
    told = config["quantization_config"]
    old = {key: told[key] for key in ("quant_method", "linear", "without_bias")} | {"format_version": 1}
    file.write_text(json.dumps({**config, "quantization_config": old}))
    with torch.no_grad():
        assert torch.equal(load_checkpoint(folder, dtype=model.dtype)(IDS).logits, model(IDS).logits)


def test_an_unknown_module_is_named(saved):
    _, folder = saved
    _edit_config(folder, linear={**RANKS, "model.layers.0.nowhere": 3})
    with pytest.raises(ValueError, match=r"model\.layers\.0\.nowhere"):
        load_checkpoint(folder)


def test_a_wrong_rank_is_named(saved):
    _, folder = saved
    _edit_config(folder, linear={**RANKS, "model.layers.2.mlp.down_proj": 12})
    with pytest.raises((ValueError, RuntimeError), match=r"model\.layers\.2\.mlp\.down_proj"):
        load_checkpoint(folder)


@pytest.mark.parametrize("way", [load_checkpoint, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("factor", ["2.mlp.down_proj.A", "0.self_attn.k_proj.B"])
def test_a_missing_factor_is_named_by_every_way_of_loading(saved, way, factor):
    """Plain ``from_pretrained`` only warns of missing weights and fills them in at random."""
    _, folder = saved
    lost = f"model.layers.{factor}.weight"
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(lost)):
        way(folder)


@pytest.mark.parametrize("way", [load_checkpoint, AutoModelForCausalLM.from_pretrained])
def test_a_truncated_file_is_named(saved, way):
    _, folder = saved
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        way(folder)


def test_a_module_of_another_kind_is_refused(saved):
    _, folder = saved
    _edit_config(folder, linear={**RANKS, "model.layers.0.input_layernorm": 3})
    with pytest.raises(ValueError, match=r"model\.layers\.0\.input_layernorm: a LlamaRMSNorm is no linear"):
        load_checkpoint(folder)


def test_a_full_disk_is_noticed_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="GB are free"):
        check_space(tmp_path, 10**18, torch.float32)
    check_space(tmp_path, 10, torch.float32)


def test_a_folder_with_something_in_it_is_replaced_only_when_asked(saved, tokenizer, tmp_path):
    model, _ = saved
    own = tmp_path / "models"
    own.mkdir()
    save_checkpoint(model, tokenizer, own, plan={"ranks": RANKS}, card="#")  # an empty one is as good as none
    (own / "notes.txt").write_text("own")
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".other.partial" / "own.txt").write_text("own")
    with pytest.raises(ConfigError, match="is there already"):
        save_checkpoint(model, tokenizer, own, plan={"ranks": RANKS}, card="#")
    save_checkpoint(model, tokenizer, tmp_path / "other", plan={"ranks": RANKS}, card="#")
    assert (own / "notes.txt").read_text() == (tmp_path / ".other.partial" / "own.txt").read_text() == "own"
    save_checkpoint(model, tokenizer, own, plan={"ranks": RANKS}, card="#", overwrite=True)
    assert not (own / "notes.txt").exists()


def test_a_disk_that_is_full_is_a_write_error_and_leaves_nothing(saved, tokenizer, tmp_path, monkeypatch):
    model, _ = saved

    def full(*_, **__):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(WriteError, match="the checkpoint cannot be written"):
        save_checkpoint(model, tokenizer, tmp_path / "x", plan={"ranks": RANKS}, card="#")
    assert not list(tmp_path.glob("*x*"))


def test_what_cannot_be_saved_shows_before_the_work(tiny_model, tokenizer):
    check_saveable(tiny_model, tokenizer)
    tiny_model.generation_config.temperature = 0.5  # and no sampling: transformers refuses to save that
    tiny_model.generation_config.do_sample = False
    with pytest.raises(ConfigError, match="model: a checkpoint of it cannot be saved"):
        check_saveable(tiny_model, tokenizer)
