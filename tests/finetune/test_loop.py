"""Fine-tuning in memory: identities first, then what must learn and what must not, then every family."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lillama.config import FinetuneConfig, FinetuneDataConfig, LoraConfig, Scope, Source, Tune
from lillama.data.tokens import TokenBlocks
from lillama.errors import ConfigError, DivergedError
from lillama.finetune import Tuned, fine_tune
from lillama.finetune.loss import NOT_PREDICTED, predicted, prediction_loss, predictions
from lillama.model.inputs import Batch
from lillama.model.task import Task, task_of_architecture
from lillama.runtime import LowRank
from tests.conftest import random_tokens
from tests.families import FAMILIES, batch_for, tiny
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of

DATA = FinetuneDataConfig(source=Source.stdlib_docs)
PREDICTING = [name for name in FAMILIES if name not in ("bert", "roberta", "modernbert")]


def recipe(**options):
    return FinetuneConfig(**{"data": DATA, "lr": 1e-2, "batch_size": 4, **options})


def small(model):
    """A model with factors in most of its matrices."""
    return student_of(model, mixed_ranks(model)).settle()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def tune(model, data, config):
    """The fine-tuned model, and the loss of every update."""
    tuned, losses = Tuned(model, config), []
    fine_tune(tuned, data, config, on_update=lambda update: losses.append(update.loss))
    return tuned.settle(), losses


class Examples:
    """Batches that are there already."""

    def __init__(self, *batches):
        self.given = batches
        self.tokens = sum(batch.tokens for batch in batches)

    def __len__(self):
        return len(self.given)

    def batches(self, size, device):
        yield from self.given


def padded(count=6, length=16):
    blocks = random_tokens(count, length)
    return TokenBlocks(blocks.ids, np.array([length, 5, 9, 2, length, 3][:count], np.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", list(Tune), ids=lambda train: train.name)
def test_a_learning_rate_of_zero_gives_the_same_weights_back(tiny_model, train, dtype):
    model = small(tiny_model).to(dtype)
    before = weights(model)
    after, losses = tune(model, random_tokens(), recipe(train=train, lr=0.0, weight_decay=0.1))
    assert len(losses) == 2
    assert same(weights(after), before)


def test_the_loss_is_the_models_own(tiny_model):
    batch = Batch(torch.randint(4, 260, (3, 12)))
    ours = prediction_loss(tiny_model, batch, count=predicted(tiny_model, batch))
    torch.testing.assert_close(ours, tiny_model(batch.ids, labels=batch.ids).loss)


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_the_loss_of_an_encoder_decoder_is_its_own(family):
    model = tiny(family)
    batch = batch_for(model)
    arguments, targets = predictions(model, batch)
    own = model(**arguments, labels=targets).loss
    torch.testing.assert_close(prediction_loss(model, batch, count=predicted(model, batch)), own)


def test_padding_is_neither_predicted_nor_does_it_matter(tiny_model):
    (batch,) = padded(2).batches(2, "cpu")
    _, targets = predictions(tiny_model, batch)
    assert (targets != NOT_PREDICTED).sum(1).tolist() == [15, 4]
    other = replace(batch, ids=batch.ids.masked_fill(~batch.mask, 77))
    one, two = (prediction_loss(tiny_model, given, count=1) for given in (batch, other))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"activation_checkpointing": True}])
def test_what_saves_memory_changes_nothing(tiny_model, changes):
    """Also where the parts of a batch have other numbers of predicted tokens."""
    start = weights(small(tiny_model))
    whole, _ = tune(tiny_model, padded(), recipe(batch_size=6, lr=1e-3))
    wanted = weights(whole)
    tiny_model.load_state_dict(start)
    found, _ = tune(tiny_model, padded(), recipe(batch_size=6, lr=1e-3, **changes))
    for name, value in weights(found).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-4)
    assert not same(wanted, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", list(Tune), ids=lambda train: train.name)
def test_a_repeated_text_is_learnt(tiny_model, train, dtype):
    model = small(tiny_model).to(dtype)
    after, losses = tune(model, random_tokens(4, 32), recipe(train=train, epochs=12))
    assert losses[-1] < 0.8 * losses[0]
    assert {parameter.dtype for parameter in after.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in after.parameters())
    assert not after.training


def test_factors_alone_learn_where_nothing_else_may(tiny_model):
    model = small(tiny_model)
    before = weights(model)
    after, _ = tune(model, random_tokens(), recipe(train=Tune.factors))
    pairs = tuple(f"{name}." for name, module in after.named_modules() if isinstance(module, LowRank))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(pairs)}


@pytest.mark.parametrize("family", ["whisper", "t5"])
@pytest.mark.parametrize("train", list(Tune), ids=lambda train: train.name)
def test_the_other_side_is_frozen(family, train):
    model = small(tiny(family))
    before = weights(model)
    after, _ = tune(model, Examples(batch_for(model)), recipe(train=train, scope=Scope.decoder))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert any("decoder" in name.split(".") for name in changed)
    assert not [name for name in changed if "encoder" in name.split(".") and "embed_tokens" not in name]


def test_merged_adapters_give_the_logits_of_those_beside_the_factors(tiny_model):
    model = small(tiny_model)
    before = weights(model)
    config = recipe(train=Tune.lora, epochs=4, lora=LoraConfig(rank=2, alpha=4, dropout=0.1))
    tuned = Tuned(model, config)
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
        Tuned(student_of(model, ranks).settle(), recipe(train=Tune.lora))


@pytest.mark.parametrize("family", PREDICTING)
def test_every_family_learns_through_its_factors(family):
    model = small(tiny(family))
    assert task_of_architecture(model.config) is not Task.masked_lm
    _, losses = tune(model, Examples(*[batch_for(model)] * 5), recipe(train=Tune.factors, lr=3e-3))
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_before_a_weight_is_changed(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight[0, 0] = math.nan
    before = weights(tiny_model)
    with pytest.raises(DivergedError, match=r"finetune: the loss is nan at step 0 \(0 tokens seen\)"):
        tune(tiny_model, random_tokens(), recipe())
    after = weights(tiny_model)
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
