import copy

import numpy as np
import pytest
import torch

from lillama.config import Distance, DistillConfig, Keep, LossConfig, Reduction, StudentInputs, Train
from lillama.core.errors import DivergedError
from lillama.data.tokens import TokenBlocks
from lillama.distill import LoopContext, distill
from lillama.distill.batch import LossSettings, block_feeds, learn_batch, make_learners
from lillama.distill.student_stream import StudentStream
from lillama.model.blocks import Blocks
from lillama.model.calls import BlockCall
from lillama.model.inputs import model_inputs
from lillama.model.runs import run_blocks
from lillama.model.targets import model_shape
from tests.conftest import random_tokens
from tests.families import batch_for, tiny
from tests.model.test_student import student_of

RANKS = {
    "model.layers.1.self_attn.q_proj": 9,
    "model.layers.1.mlp.down_proj": 20,
    "model.layers.3.mlp.up_proj": 15,  # block 2 between them stays dense
}


def loss_of(inputs, **options):
    return LossConfig(inputs=inputs, **options)


def gradients(model, inputs, tokens, ranks=RANKS, **options):
    """Every trained parameter's gradient after one batch, without an update."""
    student = student_of(copy.deepcopy(model), ranks)
    config = DistillConfig(train=Train.block)
    learners = make_learners(student, config, loss_of(inputs, **options))
    loss_settings = LossSettings.of(config, loss_of(inputs, **options))
    losses = learn_batch(student.teacher_blocks, learners, one_batch(tokens), loss_settings).losses
    losses = {index: float(loss) for index, loss in losses.items()}
    found = {(i, n): p.grad for i, learner in learners.items() for n, p in learner.block.named_parameters()}
    return found, losses


def one_batch(tokens):
    (batch,) = tokens.batches(len(tokens), "cpu")
    return batch


def padded_tokens():
    tokens = random_tokens(4, 16)
    return TokenBlocks(tokens.ids, np.array([16, 9, 16, 3], np.int32))


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("tokens", [random_tokens(4, 16), padded_tokens()], ids=["packed", "padded"])
def test_eq_10_the_gradients_of_the_joint_loss_are_the_sum_of_both(tiny_model, distance, reduction, tokens):
    options = {"distance": distance, "reduction": reduction}
    teacher, teacher_loss = gradients(tiny_model, StudentInputs.teacher, tokens, **options)
    student, student_loss = gradients(tiny_model, StudentInputs.student, tokens, **options)
    joint, joint_loss = gradients(tiny_model, StudentInputs.teacher_student, tokens, **options)
    assert teacher.keys() == student.keys() == joint.keys()
    for key in joint:
        torch.testing.assert_close(joint[key], teacher[key] + student[key], rtol=1e-4, atol=1e-6)
    for index in joint_loss:
        assert joint_loss[index] == pytest.approx(teacher_loss[index] + student_loss[index], rel=1e-5)
    above = {key: value for key, value in student.items() if key[0] == 3}
    assert any(not torch.allclose(value, teacher[key], rtol=1e-2) for key, value in above.items()), (
        "above the first compressed block the two see different inputs"
    )


ENDS = {"model.embed_tokens": 9, "lm_head": 9}
STREAMS = {  # which blocks are compressed, of every way between blocks that there is
    "llama": {**RANKS, **ENDS},
    "gemma2": {name: rank for name, rank in RANKS.items() if "layers.3" not in name},
    "mixtral": {"model.embed_tokens": 9, "model.layers.1.mlp.experts.gate_up_proj": 8},  # tied: the head comes along
    "opt": {"model.decoder.embed_tokens": 9, "model.decoder.layers.2.fc1": 9},
    "falcon": {"transformer.h.0.mlp.dense_h_to_4h": 9, "transformer.h.2.mlp.dense_h_to_4h": 9},
    "jamba": {"model.layers.0.mamba.in_proj": 9, "model.layers.3.feed_forward.experts.down_proj": 9},
    "zamba2": {"model.embed_tokens": 9, "model.layers.2.mamba.in_proj": 9},  # blocks 1 and 3 see the embedding too
    "whisper": {"model.encoder.layers.0.fc1": 9, "model.decoder.layers.1.fc1": 9},
    "t5": {"encoder.block.0.layer.0.SelfAttention.q": 9, "decoder.block.1.layer.1.EncDecAttention.k": 9},
    "bart": {"model.encoder.layers.1.fc1": 9, "model.decoder.layers.0.encoder_attn.v_proj": 9},
    "bert": {"bert.encoder.layer.0.output.dense": 9, "bert.encoder.layer.2.output.dense": 9},
}


@pytest.mark.parametrize("family", STREAMS)
def test_the_student_stream_is_what_the_compressed_model_feeds_its_blocks_with(family):
    """Through dense blocks between, past the embedding, from encoder to decoder and on to the head."""
    model = tiny(family, **({"num_hidden_layers": 4} if family == "llama" else {}))
    student = student_of(model, STREAMS[family])
    inputs = model_inputs(model, batch_for(model))
    learners = make_learners(student, DistillConfig(), loss_of(StudentInputs.student))
    fed = {}
    for index, learner in learners.items():
        learner.backward = _spy(fed, index, learner.backward)
    learn_batch(student.teacher_blocks, learners, batch_for(model), LossSettings(StudentInputs.student))
    true = {}
    with student.in_place() as compressed:
        wanted = range(min(learners), max(learners) + 1)
        run_blocks(
            student.teacher_blocks,
            inputs.arguments,
            wanted=wanted,
            on_block=lambda call: true.update({call.index: call}),
        )
        assert set(fed) == set(learners)
        for index, (feed, call) in fed.items():
            torch.testing.assert_close(feed.hidden, true[index].hidden)
            replayed = call.replay(Blocks(compressed)[index], feed.hidden, feed.context)
            torch.testing.assert_close(replayed, true[index].output)


def _spy(fed, index, backward):
    def spy(call, feeds, *rest):
        fed[index] = (feeds[-1], call)
        return backward(call, feeds, *rest)

    return spy


def test_no_gradient_crosses_a_block(tiny_model, tokens):
    """The gradient of block 1 is the same whether or not block 3 learns too."""
    both, _ = gradients(tiny_model, StudentInputs.teacher_student, tokens)
    student = student_of(copy.deepcopy(tiny_model), {n: r for n, r in RANKS.items() if "layers.1" in n})
    learners = make_learners(student, DistillConfig(train=Train.block), loss_of(StudentInputs.teacher_student))
    learn_batch(student.teacher_blocks, learners, one_batch(tokens), LossSettings(StudentInputs.teacher_student))
    for name, parameter in learners[1].block.named_parameters():
        assert torch.equal(parameter.grad, both[1, name])


def test_only_the_needed_blocks_run_and_the_lowest_once(tiny_model, tokens):
    ran = []
    blocks = Blocks(tiny_model)
    for index in range(len(blocks)):
        blocks[index].register_forward_hook(lambda *_, index=index: ran.append(index))
    student = student_of(tiny_model, {n: r for n, r in RANKS.items() if "layers.1" in n})
    distill(student, tokens, DistillConfig(batch_size=8), loss_of(StudentInputs.teacher_student))
    assert ran == [0, 1]
    call = BlockCall(1, torch.zeros(1))
    first = block_feeds(call, StudentStream(Blocks(tiny_model), {}), StudentInputs.teacher_student)
    assert [feed.weight for feed in first] == [2.0], "the first compressed block's two passes are one"


@pytest.mark.parametrize("inputs", list(StudentInputs))
@pytest.mark.parametrize("train", list(Train))
def test_every_blocks_loss_falls_on_a_fixed_batch(tiny_model, inputs, train):
    tokens = random_tokens(4, 32)
    student = student_of(tiny_model, RANKS)
    history = []
    config = DistillConfig(batch_size=4, epochs=15, lr=3e-3, train=train, clip_norm=1.0)
    distill(student, tokens, config, loss_of(inputs), LoopContext(on_step=history.append))
    assert [progress.tokens for progress in history] == [128 * step for step in range(1, 16)]
    for index in student.blocks:
        assert history[-1].losses[index] < history[0].losses[index]


def test_only_what_was_asked_for_is_trained(tiny_model, tokens):
    student = student_of(tiny_model, RANKS)
    before = {(i, n): p.clone() for i, block in student.blocks.items() for n, p in block.named_parameters()}
    teacher = {name: p.clone() for name, p in tiny_model.named_parameters()}
    distill(student, tokens, DistillConfig(train=Train.factors), loss_of(StudentInputs.teacher_student))
    for index, block in student.blocks.items():
        for name, parameter in block.named_parameters():
            factor = ".A." in name or ".B." in name
            assert torch.equal(parameter, before[index, name]) != factor, name
    assert all(torch.equal(p, teacher[name]) for name, p in tiny_model.named_parameters()), "the teacher never learns"


def test_a_run_repeats_bit_for_bit(tiny_model, tokens):
    def factors():
        student = student_of(copy.deepcopy(tiny_model), RANKS)
        distill(student, tokens, DistillConfig(batch_size=2), loss_of(StudentInputs.teacher_student))
        return [p.clone() for block in student.blocks.values() for p in block.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(factors(), factors(), strict=True))


def test_full_rank_factors_have_nothing_to_learn(tiny_model, tokens):
    ranks = {target.name: min(target.shape) for target in model_shape(tiny_model).targets}
    student = student_of(tiny_model, ranks)
    losses = []
    config = DistillConfig(lr=1e-12, weight_decay=0.0)
    distill(
        student,
        tokens,
        config,
        loss_of(StudentInputs.student, distance=Distance.mse),
        LoopContext(on_step=losses.append),
    )
    assert all(loss < 1e-7 for loss in losses[0].losses.values())


def test_padding_does_not_teach(tiny_model):
    """Whatever stands in the padding, the factors come out the same."""
    tokens = padded_tokens()
    other = tokens.ids.copy()
    for row, length in zip(other, tokens.lengths, strict=True):
        row[length:] = 7

    def factors(ids):
        student = student_of(copy.deepcopy(tiny_model), RANKS)
        distill(student, TokenBlocks(ids, tokens.lengths), DistillConfig(), loss_of(StudentInputs.teacher_student))
        return [p.detach() for block in student.blocks.values() for p in block.parameters()]

    for a, b in zip(factors(tokens.ids), factors(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_master_weights_keep_steps_that_bfloat16_would_lose(tiny_config, tmp_path):
    from lillama.config import Dtype
    from lillama.model.source import ModelSource

    tiny_config.dtype = Dtype.bfloat16
    tokens = random_tokens(8, 32)

    def moved(master_weights):
        student = student_of(ModelSource(tiny_config, tmp_path).load(), RANKS)
        factor = student.blocks[1].mlp.down_proj.A.weight
        before = factor.detach().float().clone()
        config = DistillConfig(batch_size=1, lr=1e-6, weight_decay=0.0, master_weights=master_weights)
        distill(student, tokens, config, loss_of(StudentInputs.teacher))
        return float((factor.detach().float() - before).abs().sum())

    assert moved(True) > 0
    assert moved(False) < moved(True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_block_and_step(tiny_model, tokens):
    student = student_of(tiny_model, RANKS)

    def poison(progress):
        if progress.step == 1:
            with torch.no_grad():
                student.blocks[3].mlp.up_proj.A.weight.fill_(float("nan"))

    with pytest.raises(DivergedError, match=r"block 3: the loss is nan at step 2 \(64 tokens seen\)"):
        distill(
            student, tokens, DistillConfig(batch_size=1), loss_of(StudentInputs.teacher), LoopContext(on_step=poison)
        )


def test_the_weights_before_the_lowest_batch_can_be_kept(tiny_model, tokens):
    student = student_of(tiny_model, RANKS)
    history, weights = [], []

    def remember(progress):
        history.append(progress.losses[1])
        weights.append(student.blocks[1].mlp.down_proj.A.weight.detach().clone())

    start = student.blocks[1].mlp.down_proj.A.weight.detach().clone()
    config = DistillConfig(batch_size=1, lr=0.05, keep=Keep.lowest_batch)
    distill(student, tokens, config, loss_of(StudentInputs.teacher), LoopContext(on_step=remember))
    lowest = history.index(min(history))
    kept = student.blocks[1].mlp.down_proj.A.weight
    assert torch.equal(kept, [start, *weights][lowest])


def test_dropout_is_off_unless_asked_for(tiny_config, tmp_path, tokens):
    from lillama.model.source import ModelSource

    tiny_config.architecture |= {"attention_dropout": 0.5}

    def losses(dropout):
        torch.manual_seed(0)
        found = []
        student = student_of(ModelSource(tiny_config, tmp_path).load(), RANKS)
        distill(
            student,
            tokens,
            DistillConfig(dropout=dropout),
            loss_of(StudentInputs.teacher),
            LoopContext(on_step=found.append),
        )
        return found[0].losses

    assert losses(False) == losses(False)
    assert losses(True) != losses(False)


def test_sum_is_mean_times_tokens(tiny_model, tokens):
    _, mean = gradients(tiny_model, StudentInputs.teacher, tokens)
    _, total = gradients(tiny_model, StudentInputs.teacher, tokens, reduction=Reduction.sum)
    for index in mean:
        assert total[index] == pytest.approx(mean[index] * tokens.tokens, rel=1e-5)


def test_a_tied_embedding_and_head_learn_their_shared_factors_by_one_update():
    """With the sum of both gradients."""
    model = tiny("llama", tie_word_embeddings=True)
    student = student_of(model, {"model.embed_tokens": 9})
    learners = make_learners(student, DistillConfig(), loss_of(StudentInputs.teacher))
    blocks, batch, loss_settings = student.teacher_blocks, batch_for(model), LossSettings(StudentInputs.teacher)
    updated, gradients = [], []

    def update(learner, loss):
        updated.append(learner.index)
        gradients.append([p.grad.clone() for p in learner.parameters])

    learn_batch(blocks, learners, batch, loss_settings, update=update)
    assert updated == [3], "the head, which comes last"
    for learner in learners.values():
        learner.drop_gradients()
    alone = []
    for index, learner in learners.items():
        learn_batch(blocks, {index: learner}, batch, loss_settings)
        alone.append([p.grad.clone() for p in learner.parameters])
        learner.drop_gradients()
    for both, one, other in zip(gradients[0], *alone, strict=True):
        torch.testing.assert_close(both, one + other)
