"""LoRA beside factors and matrices, and merged into them."""

import pytest
import torch

from lillama.config import LoraConfig, Tune
from lillama.core.errors import ConfigError
from lillama.finetune import TrainableModel, fine_tune
from tests.conftest import random_tokens
from tests.families import batch_for, tiny
from tests.finetune.examples import Examples, recipe, same, small, tune, weights
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of

pytest.importorskip("peft", reason="peft is not installed")


def test_merged_adapters_give_the_logits_of_those_beside_the_factors(tiny_model):
    model = small(tiny_model)
    before = weights(model)
    config = recipe(train=Tune.lora, epochs=4, lora=LoraConfig(rank=2, alpha=4, dropout=0.1))
    tuned = TrainableModel(model, config)
    assert {name.rsplit(".lora_", 1)[0][-1] for name in tuned.learning} == {"A", "B"}
    fine_tune(tuned, random_tokens(), config)
    ids = torch.randint(4, 260, (2, 12))
    with torch.no_grad(), tuned.in_place() as beside:
        wanted = beside(ids).logits
    merged = tuned.settle()
    torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert weights(merged).keys() == before.keys(), "an ordinary compressed model"
    assert not same(weights(merged), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "whisper"])
def test_adapters_of_a_dense_model_stand_beside_its_matrices(family):
    model = tiny(family)
    before = weights(model)
    after, losses = tune(model, Examples(*[batch_for(model)] * 6), recipe(train=Tune.lora))
    assert losses[-1] < losses[0]
    assert weights(after).keys() == before.keys()
    assert torch.equal(after.get_output_embeddings().weight, before[_head(after)])


def _head(model):
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def test_fused_experts_take_no_adapter():
    model = tiny("mixtral")
    ranks = {name: rank for name, rank in mixed_ranks(model).items() if ".experts." in name}
    with pytest.raises(ConfigError, match=r"finetune.train=lora: .*experts take none"):
        TrainableModel(student_of(model, ranks).settle(), recipe(train=Tune.lora))
