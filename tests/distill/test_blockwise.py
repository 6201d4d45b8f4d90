"""The blockwise schedule: what it feeds each block with, that parts and places change nothing, early stopping."""

import copy

import pytest
import torch

from lillama.config import BlockwiseConfig, DistillConfig, Place, StudentInputs
from lillama.core.errors import ConfigError
from lillama.distill import LoopContext, distill
from lillama.distill.learner import BlockLearner
from lillama.model.inputs import model_inputs
from lillama.model.runs import run_blocks
from tests.conftest import composed, random_tokens
from tests.distill.test_joint import RANKS, STREAMS, loss_of, padded_tokens
from tests.families import batch_for, tiny
from tests.model.test_families import FixedBatch
from tests.model.test_student import student_of


def blockwise(**options):
    return BlockwiseConfig(**options)


def weights(student):
    return {(i, n): p.detach().clone() for i, block in student.blocks.items() for n, p in block.named_parameters()}


def trained(model, tokens, config, inputs=StudentInputs.teacher_student, ranks=RANKS, **context):
    student = student_of(copy.deepcopy(model), ranks)
    distill(student, tokens, config, loss_of(inputs), LoopContext(**context))
    return weights(student)


@pytest.mark.parametrize("inputs", list(StudentInputs))
def test_one_block_alone_learns_what_it_learns_in_the_joint_schedule(tiny_model, tokens, inputs):
    """With one compressed block there is no order to choose."""
    ranks = {name: rank for name, rank in RANKS.items() if "layers.3" in name}
    options = {"batch_size": 3, "epochs": 2, "lr": 1e-3}
    joint = trained(tiny_model, tokens, DistillConfig(**options), inputs, ranks)
    alone = trained(tiny_model, tokens, DistillConfig(schedule=blockwise(), **options), inputs, ranks)
    for key, value in joint.items():
        assert torch.equal(alone[key], value), key


def test_the_lowest_block_learns_what_it_learns_in_the_joint_schedule(tiny_model, tokens):
    joint = trained(tiny_model, tokens, DistillConfig(batch_size=3))
    alone = trained(tiny_model, tokens, DistillConfig(batch_size=3, schedule=blockwise()))
    assert all(torch.equal(alone[key], joint[key]) for key in joint if key[0] == 1)
    assert any(not torch.equal(alone[key], joint[key]) for key in joint if key[0] == 3), "it is fed by another block 1"


FAMILIES = sorted({"llama", "gemma2", "opt", "falcon", "jamba", "whisper", "t5", "bart", "bert"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", list(Place))
def test_every_block_is_fed_with_what_the_finished_blocks_below_it_give(family, place, tmp_path, monkeypatch):
    """The inputs that a block learns from are those of the compressed model as it is when it is done."""
    model = tiny(family, **({"num_hidden_layers": 4} if family == "llama" else {}))
    untied = {name: rank for name, rank in STREAMS[family].items() if family != "opt" or "embed" not in name}
    student = student_of(model, untied)
    batch = batch_for(model)
    fed = {}

    def spy(self, call, feeds, *rest):
        fed[call.index] = (feeds[-1].hidden.clone(), call.output.clone())
        return backward(self, call, feeds, *rest)

    backward = BlockLearner.backward
    monkeypatch.setattr(BlockLearner, "backward", spy)
    true_teacher = {}
    inputs = model_inputs(model, batch)
    wanted = range(min(student.blocks), max(student.blocks) + 1)
    blocks = student.teacher_blocks
    keep = lambda found: lambda call: found.update({call.index: call})  # noqa: E731
    run_blocks(blocks, inputs.arguments, wanted=wanted, on_block=keep(true_teacher))
    config = DistillConfig(schedule=blockwise(place=place), lr=1e-3, epochs=2)
    data = FixedBatch(batch)
    distill(student, data, config, loss_of(StudentInputs.teacher_student), LoopContext(scratch=tmp_path / "scratch"))
    assert not (tmp_path / "scratch").exists()
    true = {}
    with student.in_place():
        run_blocks(blocks, inputs.arguments, wanted=wanted, on_block=keep(true))
    assert set(fed) == set(student.blocks)
    for index, (hidden, output) in fed.items():
        torch.testing.assert_close(hidden, true[index].hidden)
        torch.testing.assert_close(output, true_teacher[index].output)


@pytest.mark.parametrize("inputs", list(StudentInputs))
@pytest.mark.parametrize("tokens", [random_tokens(7, 16), padded_tokens()], ids=["packed", "padded"])
def test_micro_batches_and_the_disk_change_nothing(tiny_model, tokens, inputs, tmp_path):
    config = {"batch_size": 3, "epochs": 2, "lr": 1e-4}
    whole = trained(tiny_model, tokens, DistillConfig(schedule=blockwise(), **config), inputs)
    micro = trained(tiny_model, tokens, DistillConfig(schedule=blockwise(), micro_batch=2, **config), inputs)
    settings = DistillConfig(schedule=blockwise(place=Place.disk), **config)
    disk = trained(tiny_model, tokens, settings, inputs, scratch=tmp_path / "scratch")
    for key, value in whole.items():
        torch.testing.assert_close(micro[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(disk[key], value), key


def test_the_loss_of_every_block_falls(tiny_model):
    tokens = random_tokens(4, 32)
    student = student_of(tiny_model, RANKS)
    history = []
    config = DistillConfig(schedule=blockwise(), batch_size=4, epochs=15, lr=3e-3)
    distill(student, tokens, config, loss_of(StudentInputs.teacher_student), LoopContext(on_step=history.append))
    assert len(history) == 15 * len(student.blocks)
    assert [progress.tokens for progress in history][-1] == 15 * tokens.tokens
    for index in student.blocks:
        own = [progress.losses[index] for progress in history if index in progress.losses]
        assert own[-1] < own[0]
        assert len(own) == 15


def test_a_block_stops_when_its_held_out_loss_falls_no_more_and_keeps_its_best(tiny_model):
    tokens = random_tokens(8, 16)
    student = student_of(tiny_model, RANKS)
    start = weights(student)
    history = []
    schedule = blockwise(heldout=0.25, patience=2)
    config = DistillConfig(schedule=schedule, batch_size=2, epochs=50, lr=100.0)  # a rate that only destroys
    distill(student, tokens, config, loss_of(StudentInputs.teacher_student), LoopContext(on_step=history.append))
    assert len(history) == len(student.blocks) * 2 * 3, "two passes over three batches"
    assert all(torch.equal(value, start[key]) for key, value in weights(student).items()), "the start was the best"


def test_held_out_sequences_do_not_teach(tiny_model):
    tokens, other = random_tokens(8, 16), random_tokens(8, 16)
    other.ids[6:] = random_tokens(2, 16, seed=9).ids
    config = DistillConfig(schedule=blockwise(heldout=0.25), batch_size=2, epochs=1, lr=1e-4)
    ranks = {name: rank for name, rank in RANKS.items() if "layers.1" in name}
    one, two = (trained(tiny_model, data, config, ranks=ranks) for data in (tokens, other))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("distill.dropout=true", "dropout"),
        ("distill.on_oom=halve", "on_oom"),
        ("parallel=blocks", "parallel=blocks"),
    ],
)
def test_what_the_schedule_cannot_do_is_refused_before_anything_is_loaded(words, message):
    with pytest.raises(ConfigError, match=message):
        composed("distill/schedule=blockwise", words)


def test_a_tied_low_rank_embedding_needs_the_joint_schedule():
    model = tiny("llama", tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="tied"):
        trained(model, random_tokens(2, 8), DistillConfig(schedule=blockwise()), ranks={"model.embed_tokens": 9})


def test_nothing_can_be_held_out_of_one_batch(tiny_model, tokens):
    with pytest.raises(ConfigError, match="one batch"):
        trained(tiny_model, tokens, DistillConfig(schedule=blockwise(heldout=0.5), batch_size=100))
