import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.xglm.modeling_xglm import XGLMScaledWordEmbedding

from lillama.model.lowrank import (
    FactoredWeight,
    LowRankEmbedding,
    LowRankLinear,
    PivotedEmbedding,
    PivotedLinear,
    empty_embedding,
    head_of,
)


def randomly_ordered(module):
    if module.pivoted:
        for part, places in zip(module.orders(), torch.randperm(6).split([3, 3]), strict=True):
            part.copy_(places)
    return module


@pytest.fixture(params=[LowRankLinear, PivotedLinear])
def linear(request):
    return randomly_ordered(request.param(6, 5, 3, bias=True))


def test_the_lazy_weight_answers_without_computing(linear, monkeypatch):
    def fail(*_):
        raise AssertionError("computed")

    monkeypatch.setattr("lillama.model.lowrank.lillama_modules._computed", fail)
    weight = linear.bfloat16().weight
    assert isinstance(weight, FactoredWeight)
    assert (weight.dtype, weight.device.type, tuple(weight.shape), weight.ndim) == (torch.bfloat16, "cpu", (5, 6), 2)
    assert weight.is_floating_point()
    assert weight.numel() == 30


def test_the_lazy_weight_computes_where_it_is_used(linear):
    x = torch.randn(4, 6)
    product = multiplied_out(linear)
    assert torch.equal(linear.weight @ x.T, product @ x.T)
    assert torch.equal(nn.functional.linear(x, linear.weight, linear.bias), x @ product.T + linear.bias)
    assert torch.equal(linear.weight.float().T, product.T)
    linear.weight.sum().backward()
    assert linear.A.weight.grad is not None, "gradients reach the factors"
    torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_a_fused_kernel_that_takes_the_weight_trains_the_factors(linear):
    """As Mamba's do: the weight goes into an autograd function instead of the module being called."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x @ weight.T

        @staticmethod
        def backward(ctx, gradient):
            return None, gradient.T @ ctx.saved_tensors[0]

    x, gradient = torch.randn(4, 6), torch.randn(4, 5)
    Kernel.apply(x, linear.weight).backward(gradient)
    by_kernel = linear.A.weight.grad.clone(), linear.B.weight.grad.clone()
    linear.zero_grad()
    (linear(x) - linear.bias).backward(gradient)
    torch.testing.assert_close(by_kernel, (linear.A.weight.grad, linear.B.weight.grad))


def multiplied_out(linear):
    """A B, or A [I B] with every column where the order says."""
    if not linear.pivoted:
        return linear.A.weight @ linear.B.weight
    inner = torch.empty(linear.rank, linear.in_features)
    inner[:, linear.pivots], inner[:, linear.rest] = torch.eye(linear.rank), linear.B.weight.detach()
    return linear.A.weight @ inner


@pytest.mark.parametrize("kind", [LowRankEmbedding, PivotedEmbedding])
def test_a_tied_head_shares_the_embeddings_factors(kind):
    embedding = randomly_ordered(kind(10, 6, 3))
    head = head_of(embedding, nn.Linear(6, 10, bias=False))
    assert head.A.weight is embedding.A.weight
    assert head.B.weight is embedding.B.weight
    assert [id(part) for part in head.orders()] == [id(part) for part in embedding.orders()]
    table = embedding.weight + 0
    ids = torch.tensor([[1, 4, 9]])
    torch.testing.assert_close(embedding(ids), table[ids])
    x = torch.randn(2, 6)
    torch.testing.assert_close(head(x), x @ table.T)
    assert (embedding.weight.shape, len(list(embedding.factor_parameters()))) == ((10, 6), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("table", "scale"), [(Gemma3TextScaledWordEmbedding, 6**0.5), (XGLMScaledWordEmbedding, 7.3)])
@pytest.mark.parametrize("pivoted", [False, True])
def test_an_embedding_that_scales_its_rows_scales_them_as_before(table, scale, pivoted, dtype):
    """By what it was, in the numbers that it was in; its head, and so its weight, is without."""
    dense = table(10, 6, 0, embed_scale=scale).to(dtype)
    embedding = randomly_ordered(empty_embedding(dense, 3, pivoted=pivoted))
    dense.weight = nn.Parameter(embedding.weight + 0)
    ids = torch.tensor([[1, 4, 9]])
    tolerance = {} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(embedding(ids), dense(ids), **tolerance)
    torch.testing.assert_close(embedding.weight[1] * scale, dense(ids)[0, 0], **tolerance)


def test_the_scale_is_known_where_nothing_else_is():
    with torch.device("meta"):
        dense = Gemma3TextScaledWordEmbedding(10, 6, 0, embed_scale=2.5)
        assert float(empty_embedding(dense, 3).scale) == 2.5


@pytest.mark.parametrize("child", ["A", "B"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_a_hook_of_a_factor_is_called(child, kind):
    module, seen = randomly_ordered(PivotedLinear(6, 5, 3)), []
    wanted = module(torch.ones(2, 6))
    getattr(getattr(module, child), kind)(lambda *_: seen.append(child) and None)
    found = module(torch.ones(2, 6))
    found.sum().backward()
    assert seen == [child]
    torch.testing.assert_close(found, wanted)
