"""What happens when the device has no memory left; moments in 8 bits; compiled blocks."""

import copy

import pytest
import torch

from lillama.config import AdamPrecision, DistillConfig, OutOfMemory, StudentInputs
from lillama.core.errors import DeviceMemoryError
from lillama.distill import LoopContext, distill
from lillama.distill.batch import make_learner
from lillama.distill.learner import BlockLearner
from tests.conftest import random_tokens
from tests.distill.test_joint import RANKS, loss_of
from tests.model.test_student import student_of


def weights(student):
    return {(i, n): p.detach().clone() for i, block in student.blocks.items() for n, p in block.named_parameters()}


@pytest.fixture
def small_device(monkeypatch):
    """A device that has memory for two sequences at a time, and runs out in the middle of a step."""
    backward = BlockLearner.backward

    def limited(self, call, feeds, *rest):
        if len(call.hidden) > 2 and self.index == 3:
            raise torch.OutOfMemoryError("no memory left")
        return backward(self, call, feeds, *rest)

    monkeypatch.setattr(BlockLearner, "backward", limited)


def distilled(model, ranks=RANKS, **options):
    student = student_of(copy.deepcopy(model), ranks)
    config = DistillConfig(lr=1e-4, **({"batch_size": 8} | options))
    distill(student, random_tokens(16, 16), config, loss_of(StudentInputs.teacher_student), LoopContext())
    return weights(student)


def test_no_memory_left_says_which_setting_to_lower_and_to_what(tiny_model, small_device):
    with pytest.raises(DeviceMemoryError, match=r"8 sequences of 16 tokens at a time: set distill\.micro_batch=4"):
        distilled(tiny_model)


def test_one_sequence_that_does_not_fit_needs_something_else(tiny_model, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(BlockLearner, "backward", never)
    with pytest.raises(DeviceMemoryError, match=r"data\.seq_len=8.*blockwise.*offload"):
        distilled(tiny_model, micro_batch=1)


def test_half_as_many_sequences_at_a_time_give_the_same_factors(tiny_model, small_device, caplog):
    halved = distilled(tiny_model, on_oom=OutOfMemory.halve)
    assert "going on with 4" in caplog.text and "going on with 2" in caplog.text
    assert caplog.text.count("going on") == 2, "what was found is kept for the steps that follow"
    wanted = distilled(tiny_model, micro_batch=2)
    for key, value in wanted.items():
        torch.testing.assert_close(halved[key], value, rtol=1e-5, atol=1e-7)


def test_moments_in_eight_bits_teach_as_well(tiny_model):
    """Without torchao's compilation of its step, which takes a C++ compiler half a minute for every shape."""
    ranks = {f"model.layers.{block}.mlp.up_proj": 40 for block in (1, 3)}
    student = student_of(copy.deepcopy(tiny_model), ranks)
    history = []
    config = DistillConfig(batch_size=4, epochs=15, lr=3e-3, moments=AdamPrecision.int8)
    learner = make_learner(student, 1, config, loss_of(StudentInputs.teacher))
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    with torch.compiler.set_stance("force_eager"):
        learner.update(0.0, torch.zeros(()))
        kinds = {type(state["exp_avg"]).__name__ for state in learner.optimizer.state.values()}
        assert "OptimState8bit" in kinds
        distill(
            student,
            random_tokens(4, 32),
            config,
            loss_of(StudentInputs.teacher_student),
            LoopContext(on_step=history.append),
        )
    assert all(history[-1].losses[index] < history[0].losses[index] for index in student.blocks)


@pytest.mark.long  # the compiler's own time, forty seconds
def test_compiled_blocks_learn_the_same(tiny_model):
    one_block = {"model.layers.1.self_attn.q_proj": 9}  # each is compiled apart
    plain = distilled(tiny_model, one_block)
    compiled = distilled(tiny_model, one_block, compile=True)
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)


def test_an_update_is_never_made_twice(tiny_model, monkeypatch, caplog):
    """Out of memory where AdamW makes its moments: what has been updated is not taught the batch again."""

    def never(self, lr, loss):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(BlockLearner, "update", never)
    with pytest.raises(torch.OutOfMemoryError):
        distilled(tiny_model, on_oom=OutOfMemory.halve)
    assert "going on" not in caplog.text
