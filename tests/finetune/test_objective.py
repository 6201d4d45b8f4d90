"""Learning from the dense model's logits: identities first, then what is learnt, then every family."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lillama.config import LoraConfig, Objective, Scope, SnapshotConfig, Tune
from lillama.distill import LoopContext
from lillama.distill.snapshot import Snapshots
from lillama.finetune import TrainableModel, dense_teacher, fine_tune
from lillama.finetune.objective import loss_of
from lillama.finetune.teacher import twin
from lillama.model.blocks import Blocks
from lillama.model.offload import onloaded
from lillama.model.prediction import NOT_PREDICTED, predictions
from tests.conftest import random_tokens
from tests.families import EVERYDAY, batch_for, tiny
from tests.finetune.examples import Examples, padded, recipe, same, weights
from tests.finetune.test_loop import PREDICTING
from tests.marks import long_unless
from tests.model.test_families import mixed_ranks
from tests.model.test_offload import dtypes, whole_and_visiting
from tests.model.test_student import student_of

KL = {"objective": Objective.kl, "train": Tune.factors}


def pair(model):
    """A compressed model and the dense one that it was, which share what was not replaced."""
    student = student_of(model, mixed_ranks(model))
    teacher = dense_teacher(student)
    return student.settle(), teacher


def learn(model, teacher, data, config):
    """The model when it has learnt, and the loss of every update."""
    tuned, losses = TrainableModel(model, config), []
    fine_tune(tuned, data, config, on_update=lambda update: losses.append(update.loss), teacher=teacher)
    return tuned.settle(), losses


def storages(model):
    return {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "whisper"])
def test_the_loss_is_the_mean_divergence_where_a_token_is_predicted(family):
    model, teacher = pair(tiny(family))
    batch = batch_for(model)
    loss = loss_of(TrainableModel(model, recipe(**KL)), recipe(**KL), teacher)
    loss.of(batch)
    found = loss(batch)
    arguments, targets = predictions(model, batch)
    with torch.no_grad():
        ours, theirs = (F.log_softmax(one(**arguments).logits, dim=-1) for one in (model, teacher))
    each = (theirs.exp() * (theirs - ours)).sum(-1)
    torch.testing.assert_close(found.detach(), each[targets != NOT_PREDICTED].mean(), atol=1e-6, rtol=1e-4)
    assert found > 0.01


def test_the_teacher_gives_the_dense_logits_and_costs_nothing_but_what_was_replaced():
    model = tiny("llama")
    batch = batch_for(model)
    with torch.no_grad():
        dense = model(batch.ids).logits
    held = storages(model)
    compressed, teacher = pair(model)
    with torch.no_grad():
        assert torch.equal(teacher(batch.ids).logits, dense)
        assert not torch.equal(compressed(batch.ids).logits, dense)
    assert storages(teacher) == held
    shared = storages(teacher) & storages(compressed)
    assert model.get_input_embeddings().weight.untyped_storage().data_ptr() in shared


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"activation_checkpointing": True}])
def test_what_saves_memory_changes_nothing(tiny_model, changes, weight):
    """Also where the parts of a batch have other numbers of predicted tokens."""
    dense = copy.deepcopy(tiny_model)
    found = []
    for options in ({}, changes):
        model, teacher = pair(copy.deepcopy(dense))
        start = weights(model)
        config = recipe(batch_size=6, lr=1e-3, hidden_weight=weight, **KL, **options)
        after, losses = learn(model, teacher, padded(), config)
        found.append((weights(after), losses))
    (wanted, losses), (other, others) = found
    assert losses == pytest.approx(others, rel=1e-5)
    for name, value in other.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-4)
    assert not same(wanted, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", [Tune.all, Tune.factors, Tune.lora], ids=lambda train: train.name)
def test_it_comes_nearer_to_a_teacher_that_stays_as_it_is(tiny_model, train, dtype):
    if train is Tune.lora:
        pytest.importorskip("peft", reason="peft is not installed")
    model, teacher = pair(tiny_model.to(dtype))
    before = weights(teacher)
    config = recipe(objective=Objective.kl, train=train, epochs=12, lora=LoraConfig(rank=4))
    after, losses = learn(model, teacher, random_tokens(4, 32), config)
    assert losses[-1] < 0.8 * losses[0]
    assert same(weights(teacher), before)
    assert {parameter.dtype for parameter in after.parameters()} == {dtype}


def test_what_learns_and_is_shared_becomes_the_models_own(tiny_model):
    model, teacher = pair(tiny_model)
    loss_of(TrainableModel(model, recipe(**KL)), recipe(**KL), teacher)
    assert storages(model) & storages(teacher), "nothing that is shared learns: no copy"
    config = recipe(objective=Objective.kl, train=Tune.all)
    loss_of(TrainableModel(model, config), config, teacher)
    assert not storages(model) & storages(teacher)


@pytest.mark.parametrize("family", long_unless(EVERYDAY.__contains__, PREDICTING))
def test_every_family_comes_nearer_to_its_teacher(family):
    """In its hidden states too, however its blocks hand them on."""
    model, teacher = pair(tiny(family))
    config = recipe(lr=3e-3, hidden_weight=0.1, **KL)
    _, losses = learn(model, teacher, Examples(*[batch_for(model)] * 5), config)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["llama", "t5", "whisper"])
def test_hidden_states_are_compared_block_by_block_where_a_position_counts(family):
    model, teacher = pair(tiny(family))
    batch = batch_for(model)
    found = {}
    for weight in (0.0, 1.0):
        config = recipe(hidden_weight=weight, **KL)
        loss = loss_of(TrainableModel(model, config), config, teacher)
        loss.of(batch)
        found[weight] = loss(batch).item()
    arguments, _ = predictions(model, batch)
    outputs = [[], []]
    for side, one in zip(outputs, (model, teacher), strict=True):
        own = Blocks(one)
        for index in range(len(own)):
            own[index].register_forward_hook(
                lambda *args, side=side: side.append(args[-1][0] if isinstance(args[-1], tuple) else args[-1])
            )
        with torch.no_grad():
            one(**arguments)
    errors = [
        ((own - theirs).square().sum(-1) / theirs.square().sum(-1)).mean().item()
        for own, theirs in zip(*outputs, strict=True)
    ]
    assert found[1.0] - found[0.0] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "whisper", "gpt2"])
@pytest.mark.parametrize("train", [Tune.all, Tune.factors], ids=lambda train: train.name)
def test_it_goes_on_from_a_snapshot_to_the_same_bit(family, train, tmp_path):
    data = Examples(*(batch_for(tiny(family), seed=seed) for seed in range(4)))
    config = recipe(objective=Objective.kl, train=train, batch_size=1, hidden_weight=0.1)
    whole, _ = learn(*pair(tiny(family)), data, config)
    snapshots = Snapshots(tmp_path, "key", SnapshotConfig(every_steps=1))

    def end(update):
        if update.step == 2:
            raise KeyboardInterrupt

    model, teacher = pair(tiny(family))
    with pytest.raises(KeyboardInterrupt):
        fine_tune(TrainableModel(model, config), data, config, LoopContext(snapshots=snapshots), end, teacher=teacher)
    model, teacher = pair(tiny(family))
    tuned, steps = TrainableModel(model, config), []
    context = LoopContext(start=snapshots.latest())
    fine_tune(tuned, data, config, context, lambda update: steps.append(update.step), teacher=teacher)
    assert steps == [2, 3]
    assert same(weights(tuned.settle()), weights(whole))


@pytest.mark.parametrize("train", [Tune.all, Tune.factors], ids=lambda train: train.name)
def test_the_other_side_of_an_encoder_decoder_stays(train):
    model, teacher = pair(tiny("t5"))
    before = weights(model)
    config = recipe(objective=Objective.kl, train=train, scope=Scope.decoder)
    after, _ = learn(model, teacher, Examples(batch_for(model)), config)
    changed = {name for name, value in weights(after).items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith("encoder.block")]


@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba"])
def test_dense_blocks_that_visit_teach_what_those_on_the_device_do(family):
    """On one device, the dtype shows where a block is: at home in bfloat16, on the device in float32."""
    data = Examples(*(batch_for(tiny(family), seed=seed) for seed in range(3)))
    config, found, seen = recipe(**KL), [], []
    for model in whole_and_visiting(family):
        ranks = mixed_ranks(model)
        first = next(iter(Blocks(model).stacks)).name + ".0."
        ranks = {name: rank for name, rank in ranks.items() if name.startswith(first)}
        student = student_of(model, ranks)
        for block in student.blocks.values():
            block.bfloat16()  # both begin with the same numbers
        teacher = dense_teacher(student)
        compressed = student.settle()
        blocks = Blocks(compressed)
        with onloaded([blocks[index] for index in range(len(blocks))]):
            if found == []:
                compressed.float()
            tuned, losses = TrainableModel(compressed, config), []
            fine_tune(
                tuned,
                data,
                config,
                on_update=lambda update, own=losses: own.append(update.loss),
                teacher=teacher,
            )
            tuned.settle()
            seen.append((dtypes(Blocks(teacher)), dtypes(blocks)))
        found.append(losses)
    assert found[0] == found[1]
    (_, *others), own = seen[1]
    assert seen[1][0][0] == {torch.bfloat16}, "the block that was replaced is at home"
    assert {torch.float32} == set().union(*others, *own), "all that the compressed model runs is on the device"


def test_a_twin_ties_what_is_tied():
    model = tiny("gpt2")
    other = twin(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert other.lm_head.weight is other.transformer.wte.weight
    assert other.lm_head.weight is not model.lm_head.weight
    assert storages(other) == storages(model)


def test_without_a_teacher_there_is_nothing_to_learn_from(tiny_model):
    model, _ = pair(tiny_model)
    with pytest.raises(ValueError, match=r"finetune\.objective=kl needs the dense model"):
        fine_tune(TrainableModel(model, recipe(**KL)), random_tokens(), recipe(**KL))
