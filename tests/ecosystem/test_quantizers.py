"""A stock quantizer on top of the factors, saved and loaded again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from lillama import load_checkpoint, save_checkpoint
from lillama.config import FactorForm
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.inputs import model_inputs
from tests.families import batch_for, tiny
from tests.marks import long_unless
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of


def int8_weight_only():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))


def eight_bits():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("stock", [int8_weight_only, eight_bits])
@torch.no_grad()
def test_quantized_factors_reload_with_equal_logits(saved, tmp_path, stock):
    model = load_checkpoint(saved.folder, quantization_config=stock())
    logits = model(saved.ids).logits
    relative = (logits - saved.logits).norm() / saved.logits.norm()
    assert 0 < relative < 0.1, "quantized, and close"
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "lillama"
    assert told["stock"]["quant_method"] in ("torchao", "bitsandbytes")
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), load_checkpoint(tmp_path)):
        assert torch.equal(loaded(saved.ids).logits, logits)
        with pytest.raises(ValueError, match="before the stock quantizer"):
            loaded.dequantize()


@pytest.mark.parametrize("stock", [int8_weight_only, eight_bits])
@pytest.mark.parametrize(
    ("family", "form"),
    long_unless(
        lambda family, form: (family == "t5") == (form is FactorForm.plain) and family != "gpt2",
        [(family, FactorForm.plain) for family in ("t5", "gpt2", "mamba2", "modernbert", "mixtral")]
        + [(family, FactorForm.pivoted) for family in ("t5", "gpt2", "mixtral")],
    ),
)
@torch.no_grad()
def test_other_families_reload_too(family, form, stock, tmp_path):
    model = tiny(family)
    ranks = mixed_ranks(model)
    inputs = model_inputs(model, batch_for(model)).arguments
    small = student_of(model, ranks, form).settle()
    save_checkpoint(small, byte_tokenizer(), tmp_path / "a", plan={"ranks": ranks}, card="")
    quantized = load_checkpoint(tmp_path / "a", quantization_config=stock())
    quantized.save_pretrained(tmp_path / "b")
    assert torch.equal(load_checkpoint(tmp_path / "b")(**inputs).logits, quantized(**inputs).logits)


def test_a_second_quantizer_is_refused(saved, tmp_path):
    load_checkpoint(saved.folder, quantization_config=int8_weight_only()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantized already"):
        load_checkpoint(tmp_path, quantization_config=int8_weight_only())
