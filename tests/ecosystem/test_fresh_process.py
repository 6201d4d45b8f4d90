"""The three ways in, each in a process of its own: with the package, with the folder's own code, with neither."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lillama.config import FactorForm
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.checkpoint import save_checkpoint
from lillama.model.lowrank import RUNTIME_FILES
from tests.ecosystem.conftest import make_checkpoint
from tests.families import tiny
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of

FACTORED = ("LowRankLinear", "LowRankEmbedding", "LowRankExperts", "PivotedLinear", "PivotedEmbedding")
# The package is importable in this environment; whoever has only the folder has it not.
WITHOUT_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lillama":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
USE = """
import torch
from transformers import AutoModelForCausalLM, AutoModel, AutoTokenizer, pipeline
folder, ids, options = {folder!r}, torch.tensor({ids}), {options!r}
model = AutoModelForCausalLM.from_pretrained(folder, **options)
torch.save(model(ids).logits.detach(), {out!r})
AutoModel.from_pretrained(folder, **options)
"""
AGAIN = """
pipeline("text-generation", model=folder, **options)("a", max_new_tokens=2)
model.save_pretrained({again!r})
again = AutoModelForCausalLM.from_pretrained({again!r}, **options)
assert torch.equal(again(ids).logits, model(ids).logits)
dense = model.dequantize()
assert not any(type(module).__name__ in {factored!r} for module in dense.modules())
assert torch.allclose(dense(ids).logits, again(ids).logits, atol=1e-4)
"""


def python(code, tmp_path):
    """Run code in a new interpreter, away from the repository."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A checkpoint of either kind of factors, by the kind's name."""
    root = tmp_path_factory.mktemp("both")
    return {form.name: make_checkpoint("llama", root / form.name, form=form, vocab_size=260) for form in FactorForm}


def use_each(both, before, tmp_path, **options):
    """What one process makes of either kind, after some code of the test's."""
    code = before
    for form, saved in both.items():
        made = {"out": str(tmp_path / f"{form}.pt"), "again": str(tmp_path / form), "factored": FACTORED}
        code += (USE + AGAIN).format(folder=str(saved.folder), ids=saved.ids.tolist(), options=options, **made)
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for form, saved in both.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{form}.pt"), saved.logits, atol=1e-5, rtol=1e-5)


def test_after_importing_the_package(both, tmp_path):
    use_each(both, "import lillama\n", tmp_path)


def test_with_the_folders_own_code(both, tmp_path):
    use_each(both, WITHOUT_PACKAGE, tmp_path, trust_remote_code=True)
    for form, saved in both.items():
        again = tmp_path / form
        assert all((again / name).read_bytes() == (saved.folder / name).read_bytes() for name in RUNTIME_FILES)


# Linears; Conv1D; fused experts and a tied low-rank embedding; an untied embedding and head; encoders; both sides.
KINDS = {
    "llama": (False, ["AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification"]),
    "gpt2": (False, ["AutoModelForCausalLM", "AutoModel"]),
    "mixtral": (True, ["AutoModelForCausalLM", "AutoModel"]),
    "mixtral pivoted": (True, ["AutoModelForCausalLM", "AutoModel"]),
    "llama pivoted": (True, ["AutoModelForCausalLM", "AutoModelForSequenceClassification"]),
    "qwen3": (True, ["AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification"]),
    "modernbert": (False, ["AutoModelForMaskedLM", "AutoModel", "AutoModelForSequenceClassification"]),
    "t5": (False, ["AutoModelForSeq2SeqLM", "AutoModel", "T5EncoderModel"]),
}
TRY_EACH = """
import json, transformers
ways = []
for options in {ways!r}:
    told = {{}}
    for kind, (folder, classes) in {kinds!r}.items():
        for name in classes:
            try:
                model = getattr(transformers, name).from_pretrained(folder, **options)
                told[f"{{kind}} {{name}}"] = sum(type(module).__name__ in {factored!r} for module in model.modules())
            except Exception as error:
                told[f"{{kind}} {{name}}"] = repr(error)
    ways.append(told)
json.dump(ways, open({out!r}, "w"))
"""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A checkpoint of every kind, and the classes that load it or a part of it."""
    root = tmp_path_factory.mktemp("kinds")
    for kind, (ends, _) in KINDS.items():
        family, _, form = kind.partition(" ")
        model = tiny(family, vocab_size=260)
        ranks = mixed_ranks(model, ends=ends)
        small = student_of(model, ranks, FactorForm[form or "plain"]).settle()
        save_checkpoint(small, byte_tokenizer(), root / kind, plan={"ranks": ranks}, card="")
    return {kind: (str(root / kind), classes) for kind, (_, classes) in KINDS.items()}


@pytest.fixture(scope="module")
def tried(kinds, tmp_path_factory):
    """What one process was told, first with neither package nor folder's code, then with the code; and its report."""
    folder = tmp_path_factory.mktemp("tried")
    filled = {"kinds": kinds, "ways": [{}, {"trust_remote_code": True}], "out": str(folder / "told.json")}
    done = python(WITHOUT_PACKAGE + TRY_EACH.format(**filled, factored=FACTORED), folder)
    assert done.returncode == 0, done.stderr
    neither, own = json.loads((folder / "told.json").read_text())
    return neither, own, done.stderr


@pytest.mark.long
def test_every_kind_and_class_with_the_folders_own_code(kinds, tried):
    _, told, _ = tried
    assert len(told) == sum(len(classes) for _, classes in kinds.values())
    assert all(isinstance(count, int) and count > 2 for count in told.values()), told


@pytest.mark.long
def test_with_neither_every_kind_and_class_fails_and_names_a_module(kinds, tried):
    """Each class takes another part of the model, and none may be filled in at random."""
    told, _, report = tried
    assert len(told) == sum(len(classes) for _, classes in kinds.values())
    assert [name for name, answer in told.items() if "mismatched" not in str(answer)] == [], told
    assert "self_attn.q_proj.weight" in report
    assert "SelfAttention.q.weight" in report


def test_the_folders_code_imports_nothing_of_the_package(saved):
    for name in RUNTIME_FILES:
        text = (saved.folder / name).read_text()
        assert "import lillama" not in text
        assert "from lillama" not in text
        assert "@use_experts_implementation" not in text, "transformers looks for these words in a module's source"
