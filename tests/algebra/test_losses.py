import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.losses import feature_loss
from lillama.config import Distance


def test_eq_7_by_hand():
    """Two tokens of dimension two, written out: l1 / D - log sigmoid(cos)."""
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    student = torch.tensor([[[0.0, 1.0], [0.0, 4.0]]])
    first = (1 + 1) / 2 - math.log(1 / (1 + math.exp(0.0)))  # orthogonal: cosine 0
    second = 2 / 2 - math.log(1 / (1 + math.exp(-1.0)))  # parallel: cosine 1
    total = feature_loss(student, teacher, distance=Distance.l1_cosine, total=True)
    assert float(total) == pytest.approx(first + second, rel=1e-5)
    mean = feature_loss(student, teacher, distance=Distance.l1_cosine)
    assert float(mean) == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("distance", list(Distance))
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_a_perfect_student_has_the_least_loss(distance, seed):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(2, 3, 8, generator=generator)
    other = teacher + 0.1 * torch.randn(2, 3, 8, generator=generator)
    assert feature_loss(teacher, teacher, distance=distance) < feature_loss(other, teacher, distance=distance)


@pytest.mark.parametrize("distance", list(Distance))
def test_masked_tokens_have_no_say(distance):
    teacher, student = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wild = torch.where(mask[..., None], student, torch.full_like(student, 1e5))
    kept = feature_loss(wild, teacher, distance=distance, mask=mask)
    torch.testing.assert_close(kept, feature_loss(student[mask][None], teacher[mask][None], distance=distance))


def test_the_loss_of_narrow_activations_is_computed_in_float32():
    teacher, student = torch.randn(1, 4, 64).bfloat16(), torch.randn(1, 4, 64).bfloat16()
    wide = feature_loss(student.float(), teacher.float(), distance=Distance.mse)
    assert torch.equal(feature_loss(student, teacher, distance=Distance.mse), wide)
