"""The stage finetune on the command line: after a distillation, of a checkpoint, of a dense model, cut short."""

import csv
import os
import shutil
import signal
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lillama.run.distilling
import lillama.run.loss_line
import lillama.run.tuning
from lillama import load_checkpoint
from lillama.config import Objective, Source, Stage, Tune
from lillama.core.errors import Preempted
from lillama.core.results import read_json
from lillama.evaluate.perplexity import measured_text, perplexity
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank import LowRank
from lillama.model.source import ModelSource
from lillama.report.summary import summary
from lillama.run.pipeline import run
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN, composed, fingerprint

TUNED = (
    "finetune.data.tokens=1024",
    "finetune.data.seq_len=64",
    "finetune.batch_size=2",
    "finetune.lr=1e-3",
    "evaluate.every_tokens=512",
    "evaluate.perplexity.max_tokens=256",
    "data.tokens=512",
)
WHOLE = "stages=[plan,init,distill,finetune,perplexity]"
ALONE = "stages=[finetune,perplexity]"
LORA = ("finetune=lora", "finetune.lora.rank=2", "finetune.lora.dropout=0.2")
FACTORS = ("finetune.train=factors",)
KL = ("finetune=kl", "finetune.hidden_weight=0.1", "finetune.lr=1e-4")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module", params=[(), pytest.param(LORA, marks=pytest.mark.long), KL], ids=["full", "lora", "kl"])
def whole(request, cache, tmp_path_factory):
    """The words of a run that distils and fine-tunes, and the folder where it was made without a break."""
    words = (*TINY_RUN, *TUNED, *request.param, WHOLE, "snapshot.every_steps=2", cache)
    folder = tmp_path_factory.mktemp("whole")
    run(composed(*words), folder)
    return words, folder


@pytest.fixture
def words(cache):
    return (*TINY_RUN, *TUNED, cache)


@pytest.fixture
def of_folder(words, tmp_path, tiny_model, tokenizer):
    """The words of a run on a dense model in a folder."""
    tiny_model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    rest = [word for word in words if not word.startswith(("model=", "strategy"))]
    return ("model=hub", f"model.path={tmp_path / 'dense'}", *rest)


def metric_rows(folder):
    """What the logger was told, but for speed and memory."""
    with (folder / "metrics.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    return [row for row in rows if not row[1].endswith(("peak_memory", "tokens_per_second"))]


def measured(model):
    config = composed(*TINY_RUN, *TUNED).evaluate.perplexity
    return perplexity(model, measured_text(config, byte_tokenizer()).ids, seq_len=config.seq_len)


def test_a_distilled_model_is_fine_tuned_measured_and_saved(whole):
    _, out = whole
    result = read_json(out / "results.json")
    found, figures = result["finetune"], result["perplexity"]
    assert list(figures) == ["dense", "start", "end", "finetuned"] == list(result["bits_per_byte"])
    assert result["curve"][-1][1] == figures["end"], "the curve of the distillation ends with it"
    assert [tokens for tokens, _ in found["curve"]] == [0, 512, 1024]
    assert [value for _, value in found["curve"]][:: len(found["curve"]) - 1] == [figures["end"], figures["finetuned"]]
    if found["objective"] == "lm":  # random weights predict nothing, so neither does who learns from them
        assert figures["finetuned"] < figures["end"]
    assert (found["tokens"], found["steps"], len(found["loss"])) == (1024, 8, 8)
    assert found["seconds"] == result["seconds"]["finetune"]
    assert 0 < found["parameters"] <= result["parameters"]["compressed"]
    assert found["data"]["tokens"] == 1024 != result["tokens"]
    assert {"finetune.csv", "finetune.png", "curve.csv"} <= {path.name for path in out.iterdir()}
    assert "perplexity finetuned" in summary(result)
    assert {"finetune/loss", "finetune/perplexity"} <= {metric for _, metric, _ in metric_rows(out)}
    model = load_checkpoint(out / "checkpoint")
    assert sum(parameter.numel() for parameter in model.parameters()) == result["parameters"]["compressed"]
    assert measured(model) == pytest.approx(figures["finetuned"], rel=1e-4)
    card, learnt = (out / "checkpoint" / "README.md").read_text(), found["objective"] == "kl"
    assert "fine-tuned" in card
    assert ("fine-tuned in its factors on the dense model's logits on 1,024 tokens" in card) == learnt


def test_cut_short_it_goes_on_to_the_same_bit_without_distilling_again(whole, tmp_path, monkeypatch):
    words, unbroken = whole
    config, out = composed(*words), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_after(patch, 3)
        run(config, out)
    assert read_json(out / "results.json")["status"] == "interrupted"
    assert list((out / "snapshots_finetune").glob("step-*"))
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        cut_after(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(config, out)
    assert (out / "snapshots_finetune" / "step-00000005").is_dir(), "asked to end, it saves the update first"
    steps = []
    monkeypatch.setattr(lillama.run.distilling, "step_metrics", lambda progress: steps.append(progress) or {})
    run(config, out)
    assert not steps, "the distillation was made again"
    assert same(weights(out), weights(unbroken))
    one, two = (read_json(folder / "results.json") for folder in (out, unbroken))
    for key in ("tokens", "curve", "perplexity", "bits_per_byte"):
        assert one[key] == two[key]
    assert one["finetune"] | {"seconds": 0} == two["finetune"] | {"seconds": 0}
    assert metric_rows(out) == metric_rows(unbroken)
    assert not [path for path in out.iterdir() if path.name.startswith("snapshots")]


def killed():
    raise KeyboardInterrupt


def cut_after(patch, updates, end=killed):
    """Have a fine-tuning ended when it has come to this many updates, before anything is kept of the next one."""
    plain = lillama.run.loss_line.LossLine.add

    def add(self, update):
        if update.step == updates:
            end()
        plain(self, update)

    patch.setattr(lillama.run.loss_line.LossLine, "add", add)


def test_a_dense_model_is_fine_tuned_and_stays_an_ordinary_one(of_folder, cli, tmp_path, monkeypatch):
    every = (*of_folder, ALONE, "snapshot.every_steps=2")
    assert cli(*every, f"hydra.run.dir={tmp_path / 'whole'}")[0] == 0
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        assert cli(*every, f"hydra.run.dir={out}")[0] == 1
    status, _, err = cli(*every, f"hydra.run.dir={out}")
    assert status == 0, err
    assert same(weights(out), weights(tmp_path / "whole"))
    assert metric_rows(out) == metric_rows(tmp_path / "whole")
    result = read_json(out / "results.json")
    assert set(result["perplexity"]) == {"dense", "finetuned"}
    assert result["perplexity"]["finetuned"] < result["perplexity"]["dense"]
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    assert not hasattr(model.config, "quantization_config")
    assert measured(model.eval()) == pytest.approx(result["perplexity"]["finetuned"], rel=1e-5)
    assert not list((out / "checkpoint").glob("plan.json"))


@pytest.mark.parametrize(
    ("recipe", "form"),
    [
        pytest.param(FACTORS, "plain", marks=pytest.mark.long),
        (FACTORS, "pivoted"),
        (LORA, "plain"),
        pytest.param(LORA, "pivoted", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_finished_checkpoint_is_fine_tuned_and_measured_so(of_folder, cli, tmp_path, recipe, form):
    made = (*of_folder, "strategy=uniform", f"factors={form}", "save_checkpoint=true", "stages=[plan,init]")
    assert cli(*made, f"hydra.run.dir={tmp_path / 'made'}")[0] == 0
    before = tmp_path / "made" / "checkpoint"
    own = (f"model.path={before}", "stages=[finetune,perplexity,samples]", "evaluate.samples.prompts=[Rain]")
    out = tmp_path / "run"
    status, _, err = cli(*of_folder, *own, *recipe, "evaluate.samples.max_new_tokens=4", f"hydra.run.dir={out}")
    assert status == 0, err
    result = read_json(out / "results.json")
    assert set(result["perplexity"]) == {"end", "finetuned"}
    assert result["perplexity"]["finetuned"] < result["perplexity"]["end"]
    assert set(result["measured"]["samples"]) == {"compressed"}
    assert weights(out).keys() == load_file(before / "model.safetensors").keys()
    assert read_json(out / "checkpoint" / "plan.json") == read_json(before / "plan.json")
    model = load_checkpoint(out / "checkpoint")
    assert any(isinstance(module, LowRank) for module in model.modules())
    assert measured(model) == pytest.approx(result["perplexity"]["finetuned"], rel=1e-4)


@pytest.mark.parametrize("text", ["", "[]", '{"ranks": {}}', '{"ranks": 3, "dense_parameters": 1}'])
def test_a_damaged_plan_beside_the_weights_shows_before_the_work(of_folder, cli, tmp_path, monkeypatch, text):
    model = tmp_path / "model"
    source = next(word for word in of_folder if word.startswith("model.path=")).partition("=")[2]
    shutil.copytree(source, model)
    (model / "plan.json").write_text(text)
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    own = (f"model.path={model}", ALONE, f"hydra.run.dir={tmp_path / 'run'}")
    status, _, err = cli(*of_folder, *own)
    assert status == 2
    assert f"model.path={model}: its plan.json is damaged" in err


def test_a_finished_run_without_its_checkpoint_is_made_again(of_folder, cli, tmp_path):
    out = tmp_path / "run"
    every = (*of_folder, "stages=[finetune]", f"hydra.run.dir={out}")
    assert cli(*every)[0] == 0
    first = weights(out)
    (out / "checkpoint").rename(tmp_path / "elsewhere")
    assert cli(*every)[0] == 0
    assert same(weights(out), first)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("finetune.data.tokens=9999999", "finetune.data.tokens=9999999: the data holds only"),
        ("finetune/data=local finetune.data.path=/nowhere.jsonl", "finetune.data.path=/nowhere.jsonl: no such file"),
        ("finetune/data=speech finetune.data.path=.", "finetune.data.source=speech: tiny_random is a causal_lm"),
        ("finetune.train=factors", "finetune.train=factors: tiny_random is dense and has none"),
        ("finetune=kl finetune.train=all", "finetune.objective=kl: needs the dense model of tiny_random; name it by"),
        ("finetune.hidden_weight=1", "finetune.hidden_weight=1.0: compares with a dense model, so it needs"),
        ("finetune.temperature=2", "finetune.temperature=2.0: compares with a dense model, so it needs"),
    ],
)
def test_a_wrong_request_is_one_line_before_a_model_is_loaded(words, cli, tmp_path, monkeypatch, *, change, said):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # the path "." is read: not a whole repository with its environment
    status, _, err = cli(*words, ALONE, *change.split(), f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_adapters_need_peft(words, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("lillama.finetune.checks.importlib.util.find_spec", lambda name: None)
    status, _, err = cli(*words, ALONE, *LORA, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert "finetune.train=lora: needs the package peft (pip install peft)" in err


def test_the_fingerprint_knows_the_fine_tuning_where_it_is_asked_for(tmp_path):
    asked = composed(*TINY_RUN, *TUNED, ALONE)
    other = replace(asked, stages=[Stage.perplexity])
    settings, data = asked.finetune, asked.finetune.data
    for change in (
        {"lr": 1e-5},
        {"train": Tune.lora},
        {"objective": Objective.kl},
        {"data": replace(data, tokens=512)},
    ):
        changed = replace(settings, **change)
        assert fingerprint(replace(asked, finetune=changed)) != fingerprint(asked)
        assert fingerprint(replace(other, finetune=changed)) == fingerprint(other)
    for change in ({"micro_batch": 1}, {"activation_checkpointing": True}):
        assert fingerprint(replace(asked, finetune=replace(settings, **change))) == fingerprint(asked)
    text, found = tmp_path / "text.txt", set()
    local = replace(asked, finetune=replace(settings, data=replace(data, source=Source.local, path=str(text))))
    for content in ("one", "two"):
        text.write_text(content)
        found.add(fingerprint(local))
    assert len(found) == 2
