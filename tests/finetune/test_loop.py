"""The updates: identities first, then what is learnt, then every family."""

import math

import pytest
import torch

from lillama.config import FactorForm, SnapshotConfig, Tune
from lillama.core.errors import DivergedError
from lillama.distill import LoopContext
from lillama.distill.progress import as_parts
from lillama.distill.snapshot import Snapshots
from lillama.finetune import TrainableModel, fine_tune
from tests.conftest import random_tokens
from tests.families import EVERYDAY, FAMILIES, batch_for, tiny
from tests.finetune.examples import Examples, changed, padded, recipe, same, small, tune, weights
from tests.marks import long_unless
from tests.model.test_student import student_of

PREDICTING = [name for name in FAMILIES if name not in ("bert", "roberta", "modernbert")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", list(Tune), ids=lambda train: train.name)
def test_a_learning_rate_of_zero_gives_the_same_weights_back(tiny_model, train, dtype):
    model = small(tiny_model).to(dtype)
    before = weights(model)
    after, losses = tune(model, random_tokens(), recipe(train=train, lr=0.0, weight_decay=0.1))
    assert len(losses) == 2
    assert same(weights(after), before)


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


@pytest.mark.parametrize(
    ("family", "form"),
    long_unless(
        lambda family, form: family in EVERYDAY,
        [(family, form) for family in PREDICTING for form in FactorForm],
    ),
)
def test_every_family_learns_through_its_factors(family, form):
    model = small(tiny(family), form)
    _, losses = tune(model, Examples(*[batch_for(model)] * 5), recipe(train=Tune.factors, lr=3e-3))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("family", "form"),
    [*((family, FactorForm.plain) for family in ("mixtral", "whisper", "gpt2")), ("mixtral", FactorForm.pivoted)],
)
@pytest.mark.parametrize("train", [Tune.all, Tune.factors], ids=lambda train: train.name)
def test_it_goes_on_from_a_snapshot_to_the_same_bit(family, form, train, tmp_path):
    """Fused experts too; no model is saved and loaded under other names on the way.

    What a snapshot is taken up by may have pivots of its own: it learns on with the snapshot's.
    """
    data, config = (
        Examples(*(batch_for(tiny(family), seed=seed) for seed in range(4))),
        recipe(train=train, batch_size=1),
    )
    whole, _ = tune(small(tiny(family), form), data, config)
    snapshots = Snapshots(tmp_path, "key", SnapshotConfig(every_steps=1))

    def end(update):
        if update.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun = TrainableModel(small(tiny(family), form), config)
        fixed = as_parts(begun.orders())
        fine_tune(begun, data, config, LoopContext(snapshots=snapshots, fixed=fixed), end)
    tuned, steps = TrainableModel(small(tiny(family), form), config), []
    for order in tuned.orders().values():
        order.copy_(order.flip(-1))
    context = LoopContext(start=snapshots.latest())
    fine_tune(tuned, data, config, context, on_update=lambda update: steps.append(update.step))
    assert steps == [2, 3]
    assert same(weights(tuned.settle()), weights(whole))


@pytest.mark.parametrize("train", [Tune.all, Tune.factors], ids=lambda train: train.name)
@pytest.mark.parametrize("embedding", [True, False], ids=["learns", "stays"])
def test_a_tied_embedding_learns_or_stays(train, embedding):
    ranks = {"model.embed_tokens": 8, "model.layers.0.mlp.up_proj": 4}
    model = student_of(tiny("llama", tie_word_embeddings=True), ranks).settle()
    before = weights(model)
    tuned, _ = tune(model, Examples(batch_for(tiny("llama"))), recipe(train=train, embedding=embedding))
    moved = {name.removesuffix(".A.weight").removesuffix(".B.weight") for name in changed(tuned, before)}
    assert "model.layers.0.mlp.up_proj" in moved
    assert ({"model.embed_tokens", "lm_head"} <= moved) is embedding
    assert embedding or not {"model.embed_tokens", "lm_head"} & moved


def test_a_loss_that_is_not_finite_stops_before_a_weight_is_changed(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight[0, 0] = math.nan
    before = weights(tiny_model)
    with pytest.raises(DivergedError, match=r"finetune: the loss is nan at step 0 \(0 tokens seen\)"):
        tune(tiny_model, random_tokens(), recipe())
    after = weights(tiny_model)
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
