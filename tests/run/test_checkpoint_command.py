"""``python -m lillama checkpoint pivot``: the same function in fewer numbers, and one line where it cannot be."""

import pytest
import torch
from transformers import AutoTokenizer

from lillama import load_checkpoint, save_checkpoint
from lillama.config import FactorForm, TargetsConfig
from lillama.core.results import read_json
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.inputs import model_inputs
from lillama.model.lowrank import LowRank
from lillama.model.targets import model_shape
from lillama.run.checkpoint import main
from lillama.strategy.plan import RankPlan
from tests.checkpoints import stored_parameters
from tests.families import batch_for, tiny
from tests.model.test_families import mixed_ranks, perturb_biases
from tests.model.test_student import student_of


def plain_checkpoint(family, folder, *, ends=False, dtype=torch.float32):
    """A checkpoint of plain factors, with its plan; the model and the ranks."""
    model = tiny(family)
    perturb_biases(model)
    ranks = {
        name: rank
        for name, rank in mixed_ranks(model, ends=ends).items()
        if rank < 0.9 * (matrix := {t.name: t for t in every(model).targets}[name]).largest_rank
        and matrix.shape[1] > rank
    }
    plan = RankPlan.of(every(model), ranks).as_dict()
    student = student_of(model.to(dtype), ranks).settle()
    save_checkpoint(student, byte_tokenizer(), folder, plan=plan, card="# a card\n", max_shard_size="20KB")
    return student, ranks


def every(model):
    return model_shape(model, TargetsConfig(include=["*"]))


@pytest.mark.parametrize(
    ("family", "ends"), [("llama", True), ("gpt2", True), ("mixtral", True), ("t5", False), ("bert", False)]
)
@torch.no_grad()
def test_the_function_is_the_same_in_as_many_numbers_as_the_plan_says(family, ends, tmp_path, capsys):
    _, ranks = plain_checkpoint(family, tmp_path / "plain", ends=ends)
    assert main(["pivot", str(tmp_path / "plain"), str(tmp_path / "pivoted")]) == 0
    before, after = (load_checkpoint(tmp_path / name, attn_implementation="eager") for name in ("plain", "pivoted"))
    inputs = model_inputs(before, batch_for(before)).arguments
    torch.testing.assert_close(after(**inputs).logits, before(**inputs).logits, atol=1e-4, rtol=1e-4)
    pairs = [module for module in after.modules() if isinstance(module, LowRank)]
    assert pairs
    assert all(module.pivoted for module in pairs)
    plan = read_json(tmp_path / "pivoted" / "plan.json")
    assert plan == RankPlan.of(every(tiny(family)).factored(FactorForm.pivoted), ranks).as_dict() | {
        "reduction": plan["reduction"]
    }
    assert plan["parameters"] == stored_parameters(tmp_path / "pivoted", after)
    assert f"{plan['parameters']:,} parameters, {read_json(tmp_path / 'plain' / 'plan.json')['parameters']:,}" in (
        capsys.readouterr().out
    )
    card = (tmp_path / "pivoted" / "README.md").read_text()
    assert card.startswith("# a card")
    assert f"{plan['parameters']:,}" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "pivoted")("abc").input_ids
    after.save_pretrained(tmp_path / "again")
    again = load_checkpoint(tmp_path / "again", attn_implementation="eager")
    assert torch.equal(again(**inputs).logits, after(**inputs).logits)
    dense = after.dequantize()
    torch.testing.assert_close(dense(**inputs).logits, before(**inputs).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_narrow_numbers_stay_narrow(tmp_path):
    plain_checkpoint("llama", tmp_path / "plain", dtype=torch.bfloat16)
    assert main(["pivot", str(tmp_path / "plain"), str(tmp_path / "pivoted")]) == 0
    before, after = (load_checkpoint(tmp_path / name) for name in ("plain", "pivoted"))
    assert before.dtype == after.dtype == torch.bfloat16
    ids = batch_for(before).ids
    one, two = before(ids).logits.float(), after(ids).logits.float()
    assert (two - one).norm() / one.norm() < 0.05


def test_what_cannot_be_is_told_in_one_line(tmp_path, capsys):
    plain_checkpoint("llama", tmp_path / "plain")
    tiny("llama").save_pretrained(tmp_path / "dense")
    assert main(["pivot", str(tmp_path / "plain"), str(tmp_path / "pivoted")]) == 0
    wrong = {
        ("nowhere", "new"): "nowhere: no checkpoint",
        ("dense", "new"): "this is a dense model",
        ("pivoted", "new"): "are pivoted already",
        ("plain", "pivoted"): "pivoted: is there already",
    }
    capsys.readouterr()
    for (source, target), said in wrong.items():
        assert main(["pivot", str(tmp_path / source), str(tmp_path / target)]) == 2
        out, err = capsys.readouterr()
        assert said in err
        assert err.count("\n") == 1 and not out
    shard = next((tmp_path / "plain").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(["pivot", str(tmp_path / "plain"), str(tmp_path / "new")]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
