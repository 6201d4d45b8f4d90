import math

import lm_eval
import pytest
import torch
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.models.huggingface import HFLM

from lillama.config import ZeroShotConfig
from lillama.core.cache import Cache
from lillama.core.cache.folders import MARK
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate.scores import mean_of, recovery
from lillama.evaluate.tasks import Tasks, harness_tasks, task_manager
from lillama.evaluate.zero_shot import zero_shot
from tests.evaluate.tasks_data import NAMES, fill, rows, write

METRICS = {"piqa": "acc_norm", "arc_easy": "acc_norm", "boolq": "acc"}
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<reply>"


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "tasks")


def settings(**options):
    return ZeroShotConfig(**{"tasks": list(NAMES), "metrics": dict(METRICS), **options})


def scored(model, tokenizer, folder, *, cache=None, told=None, **options):
    config = settings(**options)
    tasks = harness_tasks(config, str(folder))
    extra = {} if told is None else {"on_task": lambda figures: told.append(list(figures["tasks"]))}
    return zero_shot(model, tokenizer, tasks, config, cache=cache, **extra)


def direct(model, tokenizer, folder, name, split, **options):
    """The harness with nothing between, on the same file."""
    spec = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(folder / name / f"{split}.jsonl")}},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
        "fewshot_split": None,
    }
    tasks = task_manager().load([{"group": "g", "task": [spec]}])
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return lm_eval.evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), tasks, **options)["results"][
        name
    ]


def test_scores_are_the_harnesss_own(tiny_model, tokenizer, folder):
    found = scored(tiny_model, tokenizer, folder)
    for name, split in (("piqa", "validation"), ("arc_easy", "test"), ("boolq", "validation")):
        own, metric = direct(tiny_model, tokenizer, folder, name, split), METRICS[name]
        score = found["tasks"][name]
        assert (score["score"], score["stderr"]) == (own[f"{metric},none"], own[f"{metric}_stderr,none"])
        assert (score["metric"], score["documents"], score["shots"]) == (metric, 6, 0)
        assert score["metrics"] == {key: value for key, value in own.items() if "," in key}
    assert found["harness"] == lm_eval.__version__


@pytest.fixture
def asked(monkeypatch):
    """The contexts of every request that reaches the model."""
    contexts = []
    plain = HFLM.loglikelihood

    def loglikelihood(self, requests, **options):
        contexts.extend(request.args[0] for request in requests)
        return plain(self, requests, **options)

    monkeypatch.setattr(HFLM, "loglikelihood", loglikelihood)
    return contexts


def test_the_limit_reaches_the_harness(tiny_model, tokenizer, folder, asked):
    found = scored(tiny_model, tokenizer, folder, tasks=["piqa"], metrics={}, limit=2)
    assert found["tasks"]["piqa"]["documents"] == 2
    assert len(asked) == 2 * 2


def test_the_number_of_examples_reaches_the_harness(tiny_model, tokenizer, folder, asked):
    found = scored(tiny_model, tokenizer, folder, tasks=["piqa"], metrics={}, num_fewshot=3)
    assert found["tasks"]["piqa"]["shots"] == 3
    examples = {row["goal"] for row in rows("piqa", 4, seed=5)}
    for context in asked:
        assert context.count("Question: ") == 4
        assert sum(context.count(f"Question: {goal}\n") for goal in examples) >= 3


def test_the_chat_template_and_the_system_prompt_reach_the_harness(tiny_model, tokenizer, folder, asked):
    tokenizer.chat_template = TEMPLATE
    scored(tiny_model, tokenizer, folder, tasks=["piqa"], metrics={}, chat_template=True, system="Be brief.")
    assert asked
    assert all(context.startswith("<system>Be brief.<user>Question: Move") for context in asked)
    assert all(context.endswith("<reply>") for context in asked)


def test_a_system_prompt_needs_no_template(tiny_model, tokenizer, folder, asked):
    scored(tiny_model, tokenizer, folder, tasks=["piqa"], metrics={}, system="Be brief.")
    assert all(context.startswith("Be brief.") for context in asked)


@pytest.mark.parametrize(("size", "expected"), [(3, 3), (None, 8)])
def test_the_batch_size_reaches_the_harness(tiny_model, tokenizer, folder, monkeypatch, *, size, expected):
    seen = []
    plain = HFLM._model_call

    def call(self, ids, *args, **options):
        seen.append(len(ids))
        return plain(self, ids, *args, **options)

    monkeypatch.setattr(HFLM, "_model_call", call)
    scored(tiny_model, tokenizer, folder, tasks=["piqa"], metrics={}, batch_size=size)
    assert max(seen) == expected


def test_a_finished_task_is_never_scored_twice(tiny_model, tokenizer, folder, tmp_path, asked):
    cache, told = Cache(tmp_path / "cache"), []
    first = scored(tiny_model, tokenizer, folder, cache=cache, told=told)
    assert told == [["piqa"], ["piqa", "arc_easy"], ["piqa", "arc_easy", "boolq"]]
    count = len(asked)
    assert scored(tiny_model, tokenizer, folder, cache=cache) == first
    assert len(asked) == count
    assert (
        scored(tiny_model, tokenizer, folder, cache=cache, batch_size=2, metrics={"piqa": "acc"})["tasks"]["piqa"][
            "score"
        ]
        == first["tasks"]["piqa"]["metrics"]["acc,none"]
    )
    assert len(asked) == count


def test_what_was_cut_off_goes_on_where_it_was(tiny_model, tokenizer, folder, tmp_path, monkeypatch):
    whole = scored(tiny_model, tokenizer, folder)
    cache, plain, seen = Cache(tmp_path / "cache"), lm_eval.evaluate, []

    def evaluate(**options):
        seen.extend(options["task_dict"]["tasks"])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return plain(**options)

    monkeypatch.setattr(lm_eval, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        scored(tiny_model, tokenizer, folder, cache=cache)
    found = scored(tiny_model, tokenizer, folder, cache=cache)
    assert seen == ["piqa", "arc_easy", "arc_easy", "boolq"]
    assert without_times(found) == without_times(whole)


def without_times(figures):
    tasks = {name: {k: v for k, v in score.items() if k != "seconds"} for name, score in figures["tasks"].items()}
    return {**figures, "tasks": tasks}


@pytest.mark.parametrize("change", ["weights", "questions", "limit", "examples", "template", "system"])
def test_what_could_change_a_score_is_scored_anew(tiny_model, tokenizer, folder, tmp_path, asked, *, change):
    cache, options = Cache(tmp_path / "cache"), {"tasks": ["piqa"], "metrics": {}}
    scored(tiny_model, tokenizer, folder, cache=cache, **options)
    count = len(asked)
    if change == "weights":
        with torch.no_grad():
            tiny_model.model.norm.weight[3] += 1e-3
    elif change == "questions":
        write(folder / "piqa" / "validation.jsonl", rows("piqa", 6, seed=1))
    elif change == "limit":
        options["limit"] = 5
    elif change == "examples":
        options["num_fewshot"] = 1
    elif change == "template":
        tokenizer.chat_template = TEMPLATE
    else:
        options["system"] = "Be brief."
    scored(tiny_model, tokenizer, folder, cache=cache, **options)
    assert len(asked) > count


def test_a_damaged_entry_is_scored_anew(tiny_model, tokenizer, folder, tmp_path):
    cache, options = Cache(tmp_path / "cache"), {"tasks": ["piqa"], "metrics": {}}
    first = scored(tiny_model, tokenizer, folder, cache=cache, **options)
    (file,) = (path for path in (tmp_path / "cache" / "scores").iterdir() if path.name != MARK)
    file.write_text(file.read_text().replace("0", "1"))
    again = scored(tiny_model, tokenizer, folder, cache=cache, **options)
    assert without_times(again) == without_times(first)


def test_one_nan_weight_gives_an_error_and_no_score(tiny_model, tokenizer, folder):
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="log-likelihood"):
        scored(tiny_model, tokenizer, folder)


def test_a_group_has_the_harnesss_own_mean(tiny_model, tokenizer, tmp_path):
    sizes = {"mmlu_formal_logic": 3, "mmlu_philosophy": 8}
    for name, count in sizes.items():
        write(tmp_path / name / "test.jsonl", rows("mmlu", count))
    config = settings(tasks=list(sizes), metrics={})
    single = harness_tasks(config, str(tmp_path))
    found = zero_shot(tiny_model, tokenizer, single, config)
    group = Group("pair", aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)])
    for task in single.leaves.values():
        group.add(task)
    whole = zero_shot(tiny_model, tokenizer, Tasks(("pair",), single.leaves, {"pair": group}), config)["tasks"]
    assert list(whole) == ["pair"]
    mean = sum(found["tasks"][name]["score"] * count for name, count in sizes.items()) / 11
    assert whole["pair"]["score"] == pytest.approx(mean)
    assert (whole["pair"]["metric"], whole["pair"]["documents"]) == ("acc", 11)


def test_a_metric_that_a_task_lacks_is_refused_before_anything_is_scored(folder):
    with pytest.raises(ConfigError, match=r"metrics\.boolq=acc_norm: the task has acc"):
        harness_tasks(settings(metrics={"boolq": "acc_norm"}), str(folder))


def test_the_mean_and_its_error():
    scores = {"a": {"score": 0.5, "stderr": 0.03}, "b": {"score": 0.7, "stderr": 0.04}}
    assert mean_of(scores) == {"score": pytest.approx(0.6), "stderr": pytest.approx(0.025), "tasks": 2}
    assert mean_of({"a": {"score": 0.5, "stderr": None}})["stderr"] is None


def test_recovery_is_compressed_over_dense():
    dense = {"tasks": {"a": {"score": 0.5}, "b": {"score": 0.0}}, "mean": {"score": 0.25}}
    small = {"tasks": {"a": {"score": 0.4}, "b": {"score": 0.1}}, "mean": {"score": 0.25}}
    assert recovery(dense, small) == {"a": pytest.approx(0.8), "mean": 1.0}
