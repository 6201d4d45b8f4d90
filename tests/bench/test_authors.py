"""The method as its authors run it: the losses of the literal reference, other parameters that learn."""

import pytest
import torch

from lillama.bench.authors import AuthorsDistillation
from lillama.bench.literal import LiteralDistillation
from lillama.config import FeatureConfig, LossConfig, Reduction, StudentInputs
from lillama.init import start_factors
from lillama.model.student import Student
from tests.bench.test_literal import ranks_of, student_of
from tests.conftest import random_tokens


@pytest.mark.parametrize("inputs", StudentInputs)
def test_its_first_losses_are_those_of_the_method_written_down_literally(tiny_model, inputs):
    tokens = random_tokens(4, 16)
    student = student_of(tiny_model, tokens, "feature")
    loss = LossConfig(inputs=inputs, reduction=Reduction.mean)
    (batch,) = tokens.batches(4, "cpu")
    found = AuthorsDistillation(student, loss).step(batch.ids)
    assert found == pytest.approx(LiteralDistillation(student, loss, lr=1e-3, weight_decay=0.01).step(batch.ids))


def test_all_of_a_layer_learns_and_nothing_else_is_touched(tiny_model):
    tokens = random_tokens(4, 16)
    student = Student(tiny_model, start_factors(tiny_model, ranks_of(tiny_model, (0, 2)), tokens, FeatureConfig()))
    dense = {name: parameter.clone() for name, parameter in tiny_model.state_dict().items()}
    authors = AuthorsDistillation(student, LossConfig(inputs=StudentInputs.teacher_student))
    before = {name: parameter.clone() for name, parameter in authors.student_layers.named_parameters()}
    (batch,) = tokens.batches(4, "cpu")
    first = authors.step(batch.ids)
    assert len(authors.student_layers) == max(student.blocks) + 1 < len(tiny_model.model.layers)
    moved = {name for name, old in before.items() if not torch.equal(old, authors.student_layers.get_parameter(name))}
    assert moved == {name for name in before if int(name.split(".")[0]) in student.blocks}
    assert all(torch.equal(parameter, dense[name]) for name, parameter in tiny_model.state_dict().items())
    for _ in range(20):
        last = authors.step(batch.ids)
    assert all(last[index] < first[index] for index in first)
