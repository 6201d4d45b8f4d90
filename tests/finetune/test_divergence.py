"""The divergence of logits is the plain one's, in value and gradient, however few positions are looked at at a time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import lillama.finetune.divergence
from lillama.finetune.divergence import divergence


def plain(student, teacher, counted, temperature):
    """Over all positions at once, by autograd."""
    ours, theirs = (F.log_softmax(logits.double() / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)[counted].sum()


def logits(rows, columns, vocabulary, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pair = [(3 * torch.randn(rows, columns, vocabulary, generator=generator)).to(dtype) for _ in range(2)]
    return pair[0].requires_grad_(), pair[1], torch.rand(rows, columns, generator=generator) < 0.7


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 40)),
    st.integers(1, 200),
    st.floats(0.5, 4),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_it_is_the_plain_one(shape, values, temperature, seed):
    student, teacher, counted = logits(*shape, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lillama.finetune.divergence, "VALUES", values)
        found = divergence(student, teacher, counted=counted, temperature=temperature, scale=0.25)
    wanted = plain(student, teacher, counted, temperature) / 4
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
    (own,), (theirs,) = (torch.autograd.grad(value, student) for value in (found, wanted))
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-4)


def test_a_model_is_as_far_from_itself_as_can_be_told_and_from_no_other():
    student, teacher, counted = logits(2, 5, 11, seed=3)
    everywhere = torch.ones_like(counted)
    same = divergence(student, student.detach(), counted=everywhere)
    assert same.item() == 0
    assert not torch.autograd.grad(same, student)[0].any()
    assert divergence(student, teacher, counted=everywhere).item() > 0


def test_what_does_not_count_may_be_anything():
    student, teacher, counted = logits(2, 5, 11, seed=1)
    wanted = divergence(student, teacher, counted=counted)
    broken = torch.where(counted[..., None], teacher, torch.nan)
    found = divergence(student, broken, counted=counted)
    assert found.item() == wanted.item()
    (gradient,) = torch.autograd.grad(found, student)
    assert not gradient[~counted].any()
    assert gradient.isfinite().all()


def test_narrow_logits_are_compared_in_float32_and_keep_their_gradient_narrow():
    student, teacher, counted = logits(2, 5, 300, seed=2, dtype=torch.bfloat16)
    found = divergence(student, teacher, counted=counted)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(student, teacher, counted, 1), atol=1e-5, rtol=1e-4)
    assert torch.autograd.grad(found, student)[0].dtype == torch.bfloat16
