import pytest
import torch

from lillama.algebra.factorize import svd_factors
from lillama.algebra.pivot import pivoted
from lillama.config import FactorForm
from lillama.core.errors import DivergedError
from lillama.model.blocks import Blocks
from lillama.model.lowrank import LowRankLinear
from lillama.model.student import Student
from lillama.model.surgery import low_rank_modules, matrix
from lillama.model.targets import model_shape
from tests.families import tiny

IDS = torch.arange(10, 26).view(2, 8)


def student_of(model, ranks, form=FactorForm.plain):
    """A student with these ranks, started by SVD."""
    factors = ((name, svd_factors(weight=matrix(model, name), rank=rank)) for name, rank in ranks.items())
    if form is FactorForm.pivoted:
        factors = ((name, pivoted(pair)) for name, pair in factors)
    return Student(model, low_rank_modules(model, factors))


@pytest.mark.parametrize("form", FactorForm)
@torch.no_grad()
def test_full_rank_factors_reproduce_the_dense_logits(tiny_model, form):
    dense = tiny_model(IDS).logits
    ranks = {target.name: min(target.shape) for target in model_shape(tiny_model).targets}
    student = student_of(tiny_model, ranks, form)
    with student.in_place() as compressed:
        assert sum(isinstance(module, LowRankLinear) for module in compressed.modules()) == 28
        torch.testing.assert_close(compressed(IDS).logits, dense, atol=1e-4, rtol=1e-4)
    assert torch.equal(tiny_model(IDS).logits, dense), "afterwards the teacher is itself again"


@torch.no_grad()
def test_biases_are_kept_or_dropped():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    factors = [("0", svd_factors(weight=matrix(model, "0"), rank=5))]
    x = torch.randn(3, 6)
    kept = low_rank_modules(model, factors)["0"]
    dropped = low_rank_modules(model, factors, keep_bias=False)["0"]
    torch.testing.assert_close(kept(x), model(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dropped(x), model(x) - model[0].bias, atol=1e-5, rtol=1e-5)


def test_student_blocks_share_nothing_that_learns_with_the_teacher(tiny_model):
    student = student_of(tiny_model, {"model.layers.1.mlp.up_proj": 4})
    own = Blocks(tiny_model)
    assert list(student.blocks) == [1]
    teachers = {p.data_ptr() for p in own[1].parameters()}
    assert not teachers & {p.data_ptr() for p in student.blocks[1].parameters()}


def test_names_that_match_nothing_raise(tiny_model):
    for name in ("model.layers.9.mlp.up_proj", "model.layers.0.mlp", "model.layers.0.input_layernorm.weight"):
        with pytest.raises(LookupError, match=f"no matrix {name}"):
            matrix(tiny_model, name)


def test_what_is_measured_is_what_is_saved(tiny_model):
    """Master weights are float32 while they learn, and the model's own dtype in place and in the end."""
    student = student_of(tiny_model.bfloat16(), {"model.layers.0.mlp.up_proj": 4})
    factor = student.blocks[0].mlp.up_proj.A.weight
    student.widen(student.blocks[0].parameters())
    with torch.no_grad():
        factor += 1e-4
    wide = factor.data.clone()
    with student.in_place() as compressed, torch.no_grad():
        assert factor.dtype == torch.bfloat16
        measured = compressed(IDS).logits
    assert factor.dtype == torch.float32
    assert torch.equal(factor.data, wide), "nothing is lost by measuring"
    settled = student.settle()
    assert {p.dtype for p in settled.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(settled(IDS).logits, measured)


def test_a_weight_that_is_not_finite_is_named(tiny_model):
    student = student_of(tiny_model, {"model.layers.2.mlp.up_proj": 4})
    student.check_finite()
    with torch.no_grad():
        student.blocks[2].mlp.up_proj.B.weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"block 2: mlp\.up_proj\.B\.weight"):
        student.check_finite()


@pytest.mark.parametrize("form", FactorForm)
@torch.no_grad()
def test_a_settled_embedding_may_be_tied_anew(form):
    """Libraries ask transformers to tie the weights of a model that they are given, lm_eval for one."""
    settled = student_of(tiny("llama", tie_word_embeddings=True), {"model.embed_tokens": 8}, form).settle()
    before = settled(IDS).logits
    settled.tie_weights()
    assert torch.equal(settled(IDS).logits, before)
    embedding, head = settled.get_input_embeddings(), settled.get_output_embeddings()
    assert head.A.weight is embedding.A.weight and head.B.weight is embedding.B.weight
