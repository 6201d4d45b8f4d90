"""The engine against the paper's method written down literally: the same factors, step for step."""

from itertools import product

import pytest

from lillama.bench.literal import LiteralDistillation
from lillama.config import (
    DistillConfig,
    FeatureConfig,
    LossConfig,
    StudentInputs,
    SvdConfig,
)
from lillama.distill import LoopContext, distill
from lillama.init import start_factors
from lillama.model.student import Student
from lillama.model.targets import model_shape
from tests.conftest import random_tokens
from tests.marks import long_unless

STEPS, SEQUENCES = 20, 4
START = {"svd": SvdConfig(), "feature": FeatureConfig()}


def ranks_of(model, blocks=(1, 3)):
    """Every matrix of these blocks; what lies between stays dense."""
    targets = [target for target in model_shape(model).targets if int(target.name.split(".")[2]) in blocks]
    return {target.name: min(target.shape) // 3 for target in targets}


def student_of(model, tokens, start):
    return Student(model, start_factors(model, ranks_of(model), tokens, START[start]))


def factors(blocks):
    return {(i, n): p for i, block in blocks.items() for n, p in block.named_parameters() if ".A." in n or ".B." in n}


def assert_equal_factors(found, wanted, limit=1e-5):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        error = (found[key].detach() - value.detach()).norm() / value.detach().norm()
        assert error < limit, (key, float(error))


BOTH = StudentInputs.teacher_student
OPTIONS = {"merged": {}, "micro": {"micro_batch": 3}, "apart": {"merge": False}}


@pytest.mark.parametrize(
    ("inputs", "way", "start"),
    long_unless(
        lambda inputs, way, start: start == "feature" and (way == "merged" or (inputs, way) == (BOTH, "apart")),
        product(StudentInputs, OPTIONS, START),
    ),
)
def test_the_engine_is_the_papers_method_step_for_step(tiny_model, inputs, way, start):
    tokens = random_tokens(STEPS * SEQUENCES, 16)
    loss = LossConfig(inputs=inputs)
    student = student_of(tiny_model, tokens, start)
    before = {key: value.detach().clone() for key, value in factors(student.blocks).items()}
    literal = LiteralDistillation(student, loss, lr=1e-3, weight_decay=0.01)
    expected = [literal.step(batch.ids) for batch in tokens.batches(SEQUENCES, "cpu")]
    history = []
    config = DistillConfig(batch_size=SEQUENCES, lr=1e-3, **OPTIONS[way])
    distill(student, tokens, config, loss, LoopContext(on_step=history.append))
    wanted = {(i, n): p for i in student.blocks for n, p in literal.student_layers[i].named_parameters()}
    found = factors(student.blocks)
    assert_equal_factors(found, {key: wanted[key] for key in found})
    assert len(history) == STEPS
    for progress, losses in zip(history, expected, strict=True):
        assert progress.losses == pytest.approx(losses, rel=1e-4)
    moved = [(found[key].detach() - old).norm() / old.norm() for key, old in before.items()]
    assert min(moved) > 1e-3, "a hundred times the tolerance: every factor has learnt something"
