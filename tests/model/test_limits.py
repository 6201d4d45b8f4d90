"""The limits read off a model's shapes are those at which it fails."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from lillama.model.inputs import Batch, model_inputs
from lillama.model.limits import Limits, model_limits
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from tests.families import BASE, BOTH_SIDES, ENCODER, FAMILIES

SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 48}
# Learned tables with an offset, with rows up to padding's, fixed sines in modules, buffers and attributes, masks.
WITH_TABLES = {
    "opt": FAMILIES["opt"],
    "gpt2": FAMILIES["gpt2"],
    "bert": FAMILIES["bert"],
    "roberta": FAMILIES["roberta"],
    "mpnet": {**ENCODER, "max_position_embeddings": 48},
    "gptj": {**SMALL, "rotary_dim": 4},
    "ctrl": {**SMALL, "dff": 48},
    "gpt_neo": {
        **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "max_position_embeddings": 48},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 8},
    },
    "biogpt": {**BASE, "intermediate_size": 48, "max_position_embeddings": 48},
    "bart": {**FAMILIES["bart"], "max_position_embeddings": 48},
    "pegasus": {**BOTH_SIDES, "max_position_embeddings": 48},
    "led": {
        **BOTH_SIDES,
        **{"max_encoder_position_embeddings": 96, "max_decoder_position_embeddings": 40, "attention_window": 8},
    },
}
COMPUTED = ("llama", "gemma2", "gpt_neox", "bloom", "mamba2", "t5", "modernbert", "mixtral")


def made(family, values):
    config = AutoConfig.for_model(family, **values)
    torch.manual_seed(0)
    return AUTO_CLASSES[task_of_architecture(config)].from_config(config).eval()


@torch.no_grad()
def run(model, length):
    ids = torch.randint(4, 60, (1, length))
    model(**model_inputs(model, Batch(ids)).arguments)


@pytest.mark.parametrize("family", WITH_TABLES)
def test_a_model_runs_at_its_limit_and_not_beyond(family):
    model = made(family, WITH_TABLES[family])
    longest = model_limits(model).text
    assert longest is not None
    run(model, longest)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        run(model, longest + 1 + model.config.is_encoder_decoder)
    with torch.device("meta"):
        assert model_limits(made(family, WITH_TABLES[family])) == model_limits(model)


@pytest.mark.parametrize("family", COMPUTED)
def test_where_positions_are_computed_any_length_goes(family):
    values = {"max_position_embeddings": 24} if family in ("llama", "gemma2", "gpt_neox", "mixtral") else {}
    model = made(family, {**FAMILIES[family], **values})
    assert model_limits(model).text is None
    run(model, 150)


def test_two_models_have_room_for_what_both_have():
    one = Limits(tokens=60, positions=None)
    assert one.least(Limits(tokens=50, positions=48)) == Limits(tokens=50, positions=48)
    assert one.least(replace(one, tokens=70)) == one


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
def test_padding_needs_no_token_of_the_model(family):
    model = made(family, FAMILIES[family])
    ids = torch.randint(4, 60, (2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [6]])
    found = []
    for pad in (3, 64, 100_000):
        inputs = model_inputs(model, Batch(ids.where(mask, pad), mask))
        found.append(model(**inputs.arguments).logits[1, : 3 if inputs.targets is not None else 6])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
