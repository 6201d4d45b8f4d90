from pathlib import Path

import pytest
import torch

from lillama.config import Dtype, ModelConfig, Weights
from lillama.evaluate.variants import model_variants, random_variants, student_variants, tensors_of
from lillama.model.lowrank import LowRank
from lillama.model.source import ModelSource
from lillama.model.student import random_student
from lillama.model.targets import model_shape
from tests.conftest import TINY_LLAMA
from tests.families import FAMILIES

CPU = torch.device("cpu")
IDS = torch.arange(4, 20).view(2, 8)
SOME = ["llama", "mixtral", "gpt_oss", "mamba", "falcon_mamba", "phi", "gpt2", "gemma3_text", "bart"]


def config_of(family, **options):
    return ModelConfig(
        name=family, weights=Weights.random, architecture={"model_type": family, **FAMILIES[family]}, **options
    )


def ranks_of(config, folder: Path, rank=4):
    return {target.name: rank for target in model_shape(ModelSource(config, folder).meta).targets}


@torch.no_grad()
def logits_of(model):
    return model(input_ids=IDS, use_cache=False).logits


def test_a_student_is_at_work_as_it_is_in_place_and_its_teacher_as_it_was(tiny_model):
    student = random_student(tiny_model, {"model.layers.1.mlp.up_proj": 4})
    alone = logits_of(tiny_model)
    with student.in_place() as compressed:
        expected = logits_of(compressed)
    found = {}
    for variant in student_variants(student):
        with variant.at_work() as model:
            found[variant.role] = logits_of(model)
    assert list(found) == ["dense", "compressed"]
    assert torch.equal(found["dense"], alone)
    assert torch.equal(found["compressed"], expected)
    assert torch.equal(logits_of(tiny_model), alone)


def test_models_are_in_evaluation_mode_at_work_and_what_they_were_after_it(tiny_model):
    student = random_student(tiny_model, {"model.layers.1.mlp.up_proj": 4})
    tiny_model.train()
    for variant in [*student_variants(student), *model_variants({"dense": tiny_model})]:
        with variant.at_work() as model:
            assert not any(module.training for module in model.modules())
        assert all(module.training for module in tiny_model.modules())


def test_the_weights_of_the_variants_are_those_of_the_plan(tiny_config, tmp_path):
    ranks = ranks_of(tiny_config, tmp_path)
    shape = model_shape(ModelSource(tiny_config, tmp_path).meta)
    saved = sum(t.parameters - 4 * sum(t.shape) for t in shape.targets)
    counts = {}
    for variant in random_variants(ModelSource(tiny_config, tmp_path), ranks):
        with variant.at_work() as model:
            counts[variant.role] = sum(parameter.numel() for parameter in model.parameters())
    assert counts["dense"] == shape.parameters
    assert counts["compressed"] == shape.parameters - saved


@pytest.mark.parametrize("family", SOME)
def test_random_variants_compute_finite_logits_and_are_factored(family, tmp_path):
    config = config_of(family, device="cpu", dtype=Dtype.bfloat16)
    ranks = ranks_of(config, tmp_path)
    dense, compressed = random_variants(ModelSource(config, tmp_path), ranks)
    with dense.at_work() as model:
        assert not any(isinstance(module, LowRank) for module in model.modules())
        assert logits_of(model).isfinite().all()
    with compressed.at_work() as model:
        assert any(isinstance(module, LowRank) for module in model.modules())
        assert logits_of(model).isfinite().all()
        assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(model))


@pytest.mark.parametrize("family", SOME)
def test_a_random_model_is_one_that_was_loaded_but_for_its_matrices(family, tmp_path):
    """Buffers (rotary tables), norms, dtypes and ties are what the model's own making sets."""
    config = config_of(family, device="cpu", dtype=Dtype.bfloat16)
    loaded = ModelSource(config, tmp_path).load(seed=0)
    with random_variants(ModelSource(config, tmp_path), {})[0].at_work() as model:
        expected, found = dict(loaded.named_buffers()), dict(model.named_buffers())
        assert expected.keys() == found.keys()
        for name, buffer in expected.items():
            torch.testing.assert_close(found[name], buffer, rtol=0, atol=0, msg=name)
        parameters = dict(model.named_parameters())
        for name, parameter in loaded.named_parameters():
            assert (parameters[name].dtype, parameters[name].shape) == (parameter.dtype, parameter.shape)
            if "norm" in name or name.startswith(("A_log", "D")):
                assert torch.equal(parameters[name], parameter), name
        assert len(tensors_of(model)) == len(tensors_of(loaded)), "what is tied is tied"


def test_a_matrix_is_drawn_by_its_fan_in(tiny_config, tmp_path):
    _, compressed = random_variants(ModelSource(tiny_config, tmp_path), {"model.layers.0.mlp.down_proj": 16})
    with compressed.at_work() as model:
        layer = model.model.layers[0].mlp
        for weight in (layer.up_proj.weight, layer.down_proj.A.weight, layer.down_proj.B.weight):
            assert float(weight.std()) == pytest.approx(weight.shape[-1] ** -0.5, rel=0.1)


def test_tied_low_rank_ends_share_their_factors(tmp_path):
    architecture = {**TINY_LLAMA, "tie_word_embeddings": True}
    config = ModelConfig(name="tied", weights=Weights.random, architecture=architecture, device="cpu")
    _, compressed = random_variants(ModelSource(config, tmp_path), {"model.embed_tokens": 8})
    with compressed.at_work() as model:
        assert model.lm_head.A.weight is model.model.embed_tokens.A.weight
        assert logits_of(model).isfinite().all()


def test_every_turn_has_the_same_random_weights_and_nothing_stays(tiny_config, tmp_path):
    dense, _ = random_variants(ModelSource(tiny_config, tmp_path), {"model.layers.0.mlp.up_proj": 4})
    before = torch.get_rng_state()
    found = []
    for _ in range(2):
        with dense.at_work() as model:
            found.append(logits_of(model))
        assert {tensor.device.type for tensor in tensors_of(model)} == {"meta"}, "though it is still held"
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), before), "no other draw depends on it"


def test_a_turn_that_fails_leaves_nothing_either(tiny_config, tmp_path):
    dense, _ = random_variants(ModelSource(tiny_config, tmp_path), {})
    with pytest.raises(MemoryError), dense.at_work() as model:
        raise MemoryError
    assert {tensor.device.type for tensor in tensors_of(model)} == {"meta"}


def test_blocks_may_stay_at_home(tiny_config, tmp_path):
    tiny_config.offload = True
    ranks = {"model.layers.1.mlp.up_proj": 4, "model.layers.3.mlp.up_proj": 4}
    source = ModelSource(tiny_config, tmp_path)
    variants = [*student_variants(random_student(source.load(), ranks)), *random_variants(source, ranks)]
    for variant in variants:
        with variant.at_work() as model:
            assert logits_of(model).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", ["student", "models", "random"])
def test_only_what_is_at_work_is_on_the_gpu(kind, tmp_path):
    config = ModelConfig(name="tiny", weights=Weights.random, architecture=dict(TINY_LLAMA), device="cuda")
    ranks = ranks_of(config, tmp_path)
    if kind == "random":
        variants = random_variants(ModelSource(config, tmp_path), ranks)
    elif kind == "student":
        variants = student_variants(random_student(ModelSource(config, tmp_path).load(), ranks))
    else:
        variants = model_variants({role: ModelSource(config, tmp_path).load() for role in ("dense", "compressed")})
    idle = torch.cuda.memory_allocated()  # the workspace that a matrix product before this one has left
    for variant in variants:
        with variant.at_work() as model:
            own = sum(tensor.nbytes for tensor in tensors_of(model))
            assert {tensor.device.type for tensor in tensors_of(model)} == {"cuda"}
            assert own <= torch.cuda.memory_allocated() - idle < 1.5 * own
