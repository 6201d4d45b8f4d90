"""What is counted: recorded products equal the method's by hand, and torch's own count of an attention."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from lillama.bench.engine import Engine
from lillama.bench.needed import Settings, attention_flops, llama_like, needed_flops
from lillama.bench.products import Layout, Recorder, Replay, total_flops
from lillama.config import BlockwiseConfig, DistillConfig, Dtype, LossConfig, ModelConfig, StudentInputs, Train, Weights
from lillama.model.source import ModelSource
from lillama.model.student import random_student
from lillama.model.targets import model_shape
from tests.conftest import TINY_LLAMA

BATCH, LENGTH = 3, 16
CHOICES = {
    "every matrix": ("",),
    "none at the bottom": ("o_proj", "down_proj"),
    "values only": ("v_proj",),
    "gate and attention": ("gate_proj", "q_proj"),
}


def ranks_of(shape, chosen, blocks=(1, 3)):
    return {t.name: 8 for t in shape.targets if t.block in blocks and any(name in t.name for name in chosen)}


@pytest.mark.parametrize("chosen", CHOICES)
@pytest.mark.parametrize("inputs", list(StudentInputs))
@pytest.mark.parametrize("blockwise", [False, True], ids=["joint", "blockwise"])
@pytest.mark.parametrize("train", [Train.factors, Train.block])
def test_the_engine_makes_the_products_that_the_method_needs_and_no_other(tiny_model, chosen, inputs, blockwise, train):
    shape = model_shape(tiny_model)
    ranks = ranks_of(shape, CHOICES[chosen])
    schedule = {"schedule": BlockwiseConfig()} if blockwise else {}
    config = DistillConfig(batch_size=BATCH, train=train, **schedule)
    engine = Engine(random_student(tiny_model, ranks), config, LossConfig(inputs=inputs), length=LENGTH)
    assert llama_like(shape, ranks)
    settings = Settings(
        tokens=BATCH * LENGTH,
        attention=attention_flops(tiny_model.config, sequences=BATCH, length=LENGTH),
        inputs=inputs,
        train=train,
        blockwise=blockwise,
    )
    assert total_flops(engine.record()) == needed_flops(shape, ranks, settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_products_are_seen_on_a_gpu_too(tmp_path):
    architecture = {**TINY_LLAMA, "hidden_size": 64}  # heads of 16, which fused kernels take
    options = {"weights": Weights.random, "dtype": Dtype.bfloat16, "device": "cuda"}
    model = ModelSource(ModelConfig(name="tiny", architecture=architecture, **options), tmp_path).load(seed=0)
    shape = model_shape(model)
    ranks = ranks_of(shape, ("",))
    config, loss = DistillConfig(batch_size=BATCH), LossConfig(inputs=StudentInputs.teacher_student)
    engine = Engine(random_student(model, ranks), config, loss, length=LENGTH)
    attention = attention_flops(model.config, sequences=BATCH, length=LENGTH)
    settings = Settings(tokens=BATCH * LENGTH, attention=attention, inputs=loss.inputs)
    products = engine.record()
    assert total_flops(products) == needed_flops(shape, ranks, settings)
    assert Replay(products, engine.device).seconds() > 0


def test_the_operations_of_an_attention_are_those_of_torchs_counter():
    q, k, v = (torch.randn(2, 3, 8, 4, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    with Recorder() as recorder:
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    assert total_flops(recorder.products) in (counter.get_total_flops(), 14 * 2 * 3 * 8 * 8 * 4)
    assert len(recorder.products) == 2, "forward and backward, each one fused operator"


@pytest.mark.parametrize(
    ("compute", "flops"),
    [
        (lambda: torch.randn(3, 4) @ torch.randn(4, 5), 2 * 3 * 4 * 5),
        (lambda: torch.randn(2, 3, 4) @ torch.randn(2, 4, 5), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.addmm(torch.randn(5), torch.randn(3, 4), torch.randn(4, 5)), 2 * 3 * 4 * 5),
        (lambda: torch.randn(3, 4) * torch.randn(3, 4), 0),
    ],
    ids=["mm", "bmm", "addmm", "none"],
)
def test_a_product_counts_two_operations_for_each_multiplication(compute, flops):
    with Recorder() as recorder:
        compute()
    assert total_flops(recorder.products) == flops


def test_grouped_products_count_every_row_once():
    rows, weights = torch.randn(6, 8), torch.randn(2, 8, 16)
    with Recorder() as recorder:
        torch._grouped_mm(rows, weights, offs=torch.tensor([2, 6], dtype=torch.int32))
    assert total_flops(recorder.products) == 2 * 6 * 8 * 16
    assert Replay(recorder.products, torch.device("cpu")).seconds() > 0


def test_identical_products_are_one_and_are_run_again_in_the_layout_they_had():
    left, right = torch.randn(3, 4), torch.randn(5, 4)
    with Recorder() as recorder:
        for _ in range(4):
            left @ right.T
        left @ right.T.contiguous()
    counts = {product.leaves[1].stride: product.count for product in recorder.products}
    assert counts == {(1, 4): 4, (5, 1): 1}
    replay = Replay(recorder.products, torch.device("cpu"))
    for product in recorder.products:
        args, _ = replay._arguments(product)
        assert [(tuple(a.shape), a.stride()) for a in args] == [(leaf.shape, leaf.stride) for leaf in product.leaves]
    assert replay.seconds() > 0


def test_a_layout_knows_how_far_it_reaches():
    assert Layout((3, 4), (1, 3), torch.float32).span == 12
    assert Layout((3, 4), (0, 1), torch.float32).span == 4
    assert Layout((0, 4), (4, 1), torch.float32).span == 0
