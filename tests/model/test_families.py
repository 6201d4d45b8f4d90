"""One mechanism for every family: compress, save, load, save again, merge, distil."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lillama.config import DistillConfig, FactorForm, FeatureConfig, LossConfig, StudentInputs, TargetsConfig, Train
from lillama.distill.batch import LossSettings, learn_batch, make_learners
from lillama.init import start_factors
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.checkpoint import load_checkpoint, save_checkpoint
from lillama.model.inputs import model_inputs
from lillama.model.lowrank import LowRank
from lillama.model.student import Student
from lillama.model.targets import model_shape
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from lillama.strategy.plan import RankPlan
from tests.checkpoints import stored_parameters
from tests.families import EVERYDAY, FAMILIES, FixedBatch, batch_for, tiny
from tests.marks import long_unless
from tests.model.test_student import student_of

WITH_ENDS = [
    "llama",
    "opt",
    "gpt2",
    "gpt_neox",
    "falcon",
    "mixtral",
    "qwen3_moe",
    "mamba",
    "jamba",
    "zamba2",
    "modernbert",
]
CASES = [(family, False) for family in FAMILIES] + [(family, True) for family in WITH_ENDS]
ALL_FORMS = [(family, ends, form) for family, ends in CASES for form in FactorForm]
FORMS = long_unless(lambda family, ends, form: form is FactorForm.plain or family in EVERYDAY, ALL_FORMS)
FEW_FORMS = long_unless(lambda family, ends, form: family in EVERYDAY, ALL_FORMS)


def mixed_ranks(model, *, ends=False):
    """Odd and even ranks, and every fourth matrix dense."""
    targets = model_shape(model, TargetsConfig(include=["*"]) if ends else None).targets
    return {t.name: max(1, min(t.shape) // 2 - 1 - i % 3) for i, t in enumerate(targets) if i % 4 != 3}


def tensors_of(folder: Path):
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}, len(files)


@torch.no_grad()
def perturb_biases(model):
    """Biases start at zero in most families."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.1 * torch.randn_like(parameter))


def compressed(family, form, *, ends):
    """A compressed model, its dense shape, its ranks, one batch of its inputs and its logits for them."""
    model = tiny(family)
    perturb_biases(model)
    shape = model_shape(model, TargetsConfig(include=["*"]) if ends else None)
    ranks = mixed_ranks(model, ends=ends)
    model = student_of(model, ranks, form).settle()
    inputs = model_inputs(model, batch_for(model)).arguments
    return model, shape, ranks, inputs, model(**inputs).logits


@pytest.mark.parametrize(("family", "ends", "form"), FORMS, ids=str)
@torch.no_grad()
def test_a_checkpoint_is_the_model_bit_for_bit(family, ends, form, tmp_path):
    model, shape, ranks, inputs, logits = compressed(family, form, ends=ends)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "a", plan={"ranks": ranks}, card="#", max_shard_size="20KB")
    loaded = load_checkpoint(tmp_path / "a", attn_implementation="eager")  # raises for any key that does not fit
    torch.testing.assert_close(loaded(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
    plan = RankPlan.of(shape.factored(form), ranks)
    assert plan.parameters == sum(p.numel() for p in loaded.parameters()) == stored_parameters(tmp_path / "a", loaded)
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    loaded.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    (first, shards), (second, _) = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert shards > 2
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    orders = {name: tensor for name, tensor in first.items() if name.endswith((".pivots", ".rest"))}
    assert plan.indices == sum(tensor.numel() for tensor in orders.values())
    assert bool(orders) == (form is FactorForm.pivoted)


@pytest.mark.parametrize(("family", "ends", "form"), FEW_FORMS, ids=str)
@torch.no_grad()
def test_dequantize_gives_a_plain_dense_model(family, ends, form, tmp_path):
    model, _, ranks, inputs, logits = compressed(family, form, ends=ends)
    save_checkpoint(model, byte_tokenizer(), tmp_path / "a", plan={"ranks": ranks}, card="#")
    load_checkpoint(tmp_path / "a").dequantize().save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", "auto_map"} & config.keys()
    assert not list((tmp_path / "dense").glob("*.py"))
    auto = AUTO_CLASSES[task_of_architecture(model.config)]
    dense, report = auto.from_pretrained(tmp_path / "dense", output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any(isinstance(module, LowRank) for module in dense.modules())
    torch.testing.assert_close(dense(**inputs).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "ends", "form"), FEW_FORMS, ids=str)
def test_a_feature_start_and_one_step_lower_the_loss_on_a_fixed_batch(family, ends, form):
    model = tiny(family)
    batch = batch_for(model, 4, 16)
    data = FixedBatch(batch)
    student = Student(model, start_factors(model, mixed_ranks(model, ends=ends), data, FeatureConfig(), form=form))
    learners = make_learners(student, DistillConfig(), LossConfig(inputs=StudentInputs.teacher_student))

    def losses(update):
        return learn_batch(
            student.teacher_blocks, learners, batch, LossSettings(StudentInputs.teacher), update=update
        ).losses

    before = losses(lambda learner, loss: learner.update(1e-5, loss))
    after = losses(lambda learner, loss: None)
    assert before.keys() == after.keys()
    assert all(after[index] < before[index] for index in before), (before, after)


def _update(lr, learner, loss):
    learner.update(lr, loss)


@pytest.mark.parametrize(
    ("family", "train"),
    long_unless(lambda family, train: family in EVERYDAY, [(family, train) for family in FAMILIES for train in Train]),
)
def test_master_weights_learn_in_a_narrow_model(family, train):
    """bfloat16, as on a GPU: whatever dtype a family's residual stream has."""
    model = tiny(family).bfloat16()
    student = student_of(model, mixed_ranks(model))
    config = DistillConfig(train=train)
    learners = make_learners(student, config, LossConfig(inputs=StudentInputs.teacher_student))
    before = {index: [p.clone() for p in learner.parameters] for index, learner in learners.items()}
    update = partial(_update, 1e-3)
    loss_settings = LossSettings(StudentInputs.teacher_student)
    losses = learn_batch(student.teacher_blocks, learners, batch_for(model), loss_settings, update=update).losses
    assert all(math.isfinite(loss) for loss in losses.values())
    for index, learner in learners.items():
        assert {p.dtype for p in learner.parameters} == {torch.float32}
        assert any(not torch.equal(p, old) for p, old in zip(learner.parameters, before[index], strict=True))
    with student.in_place() as compressed:
        assert {p.dtype for p in compressed.parameters()} == {torch.bfloat16}
