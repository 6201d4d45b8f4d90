"""The three ways in, each in a process of its own: with the package, with the folder's own code, with neither."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lillama.runtime import RUNTIME_FILES
from tests.ecosystem.conftest import make_checkpoint

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
assert not any("LowRank" in type(module).__name__ for module in dense.modules())
assert torch.allclose(dense(ids).logits, again(ids).logits, atol=1e-4)
"""


def python(code, tmp_path):
    """Run code in a new interpreter, away from the repository."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(params=["llama", "gpt2", "mixtral", "modernbert"])
def tiny_saved(request, tmp_path):
    """Linears; Conv1D; fused experts and a tied low-rank embedding; an encoder."""
    ends = request.param == "mixtral"
    return make_checkpoint(request.param, tmp_path / "saved", ends=ends, vocab_size=260)


def use(saved, tmp_path, **options):
    """The code that loads a checkpoint as what it is and keeps its logits."""
    masked = "Masked" in type(saved.model).__name__
    code = USE.replace("AutoModelForCausalLM", "AutoModelForMaskedLM") if masked else USE
    return code.format(**words(saved, tmp_path, **options))


def words(saved, tmp_path, **options):
    out, again = str(tmp_path / "logits.pt"), str(tmp_path / "again")
    return {"folder": str(saved.folder), "ids": saved.ids.tolist(), "options": options, "out": out, "again": again}


def test_after_importing_the_package(saved, tmp_path):
    done = python("import lillama\n" + (USE + AGAIN).format(**words(saved, tmp_path)), tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), saved.logits, atol=1e-5, rtol=1e-5)


def test_with_the_folders_own_code(saved, tmp_path):
    code = WITHOUT_PACKAGE + (USE + AGAIN).format(**words(saved, tmp_path, trust_remote_code=True))
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), saved.logits, atol=1e-5, rtol=1e-5)
    again = tmp_path / "again"
    assert all((again / name).read_bytes() == (saved.folder / name).read_bytes() for name in RUNTIME_FILES)


def test_every_kind_of_module_with_the_folders_own_code(tiny_saved, tmp_path):
    use = (
        USE.replace("AutoModelForCausalLM", "AutoModelForMaskedLM")
        if "Masked" in type(tiny_saved.model).__name__
        else USE
    )
    code = WITHOUT_PACKAGE + use.format(**words(tiny_saved, tmp_path, trust_remote_code=True))
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), tiny_saved.logits, atol=1e-5, rtol=1e-5)


def test_with_neither_it_fails_and_names_a_module(tiny_saved, tmp_path):
    use = (
        USE.replace("AutoModelForCausalLM", "AutoModelForMaskedLM")
        if "Masked" in type(tiny_saved.model).__name__
        else USE
    )
    done = python(WITHOUT_PACKAGE + use.format(**words(tiny_saved, tmp_path)), tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "logits.pt").exists()
    told = json.loads((tiny_saved.folder / "config.json").read_text())["quantization_config"]
    assert any(name in done.stderr for name in (*told["linear"], *told["embedding"], *told["experts"])), done.stderr


def test_the_folders_code_imports_nothing_of_the_package(saved):
    for name in RUNTIME_FILES:
        text = (saved.folder / name).read_text()
        assert "import lillama" not in text
        assert "from lillama" not in text
        assert "@use_experts_implementation" not in text, "transformers looks for these words in a module's source"
