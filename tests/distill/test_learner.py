"""One call for both inputs: where arguments can be joined it is one, and gives what two give."""

import pytest
import torch

from lillama.config import DistillConfig, StudentInputs
from lillama.distill.batch import LossSettings, learn_batch, make_learners
from lillama.model.calls import BlockCall
from tests.distill.test_joint import loss_of
from tests.families import EVERYDAY, FAMILIES, batch_for, tiny
from tests.marks import long_unless
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of

APART = {"bloom"}  # its positional bias is laid out by head, not by sequence


@pytest.mark.parametrize(
    ("family", "size"),
    long_unless(lambda family, size: family in EVERYDAY, [(f, size) for f in FAMILIES for size in (1, 3)]),
)
def test_both_inputs_are_one_call_and_give_the_gradients_of_two(family, size):
    gradients, calls = {}, {}
    for merge in (True, False):
        model = tiny(family)
        student = student_of(model, mixed_ranks(model))
        learners = make_learners(student, DistillConfig(merge=merge), loss_of(StudentInputs.teacher_student))
        ran = calls.setdefault(merge, [])
        for index, learner in learners.items():
            learner.block.forward = counted(ran, index, learner.block.forward)
        learn_batch(
            student.teacher_blocks, learners, batch_for(model, size), LossSettings(StudentInputs.teacher_student)
        )
        gradients[merge] = [p.grad for learner in learners.values() for p in learner.parameters]
    for joined, apart in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(joined, apart, rtol=1e-3, atol=1e-6)
    first = min(calls[False])
    assert sum(index != first for index in calls[False]) == 2 * len(set(calls[False]) - {first})
    if family not in APART:
        assert len(calls[True]) == len(set(calls[True])), "a call a block"


def counted(ran, index, forward):
    def call(*args, **kwargs):
        ran.append(index)
        return forward(*args, **kwargs)

    return call


def test_arguments_are_joined_as_they_belong_to_the_batch_and_only_where_that_is_known():
    rows, one, table = torch.zeros(2, 3, 4), torch.zeros(1, 3, 4), torch.zeros(2)
    feeds = [(rows, None), (rows + 1, None)]
    layout = {(0, 0): False, (1, "mask"): True, (1, "deep", 0): True}
    joined = BlockCall(0, rows, (one, None), {"mask": rows, "deep": (rows, "word")}).joined(feeds, layout)
    assert torch.equal(joined.hidden, torch.cat([rows, rows + 1]))
    assert joined.args[0] is one
    assert joined.kwargs["mask"].shape == (4, 3, 4)
    assert joined.kwargs["deep"][0].shape == (4, 3, 4)
    assert joined.kwargs["deep"][1] == "word"
    assert BlockCall(0, rows, (table,)).joined(feeds, {}) is None, "its length is the batch's by chance, perhaps"
    assert BlockCall(0, rows, (table,)).joined(feeds, {(0, 0): False}).args[0] is table
    alone = [(rows[:1], None), (rows[1:], None)]
    per_row = BlockCall(0, rows[:1], (one,)).joined(alone, {(0, 0): True})
    assert per_row.args[0].shape == (2, 3, 4), "one row of a batch of one, not one for all"
