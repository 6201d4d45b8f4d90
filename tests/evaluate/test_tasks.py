import pytest

from lillama.config import ZeroShotConfig
from lillama.core.errors import ConfigError
from lillama.evaluate.tasks import harness_tasks, leaves_of, task_manager
from tests.conftest import composed
from tests.evaluate.tasks_data import NAMES, fill, rows, write

SETS = ("nine", "seven", "five_slicegpt", "mmlu", "hausa")


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "tasks")


def tasks_of(folder, **options):
    return harness_tasks(ZeroShotConfig(**{"tasks": list(NAMES), **options}), str(folder))


def test_documents_are_those_of_the_files(folder):
    found = tasks_of(folder)
    assert found.named == NAMES
    for name in NAMES:
        assert [dict(row) for row in found.leaves[name].eval_docs] == rows(name, 6)


def test_the_harnesss_own_index_is_left_as_it_was(folder):
    before = dict(task_manager().task_index)
    tasks_of(folder)
    assert task_manager().task_index == before


def test_a_folder_of_the_harness_stands_for_all_of_its_tasks(tmp_path):
    row = {"question": "Is it so?", "mc2_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]}}
    write(tmp_path / "truthfulqa" / "validation.jsonl", [row])
    found = tasks_of(tmp_path, tasks=["truthfulqa_mc2"])
    assert len(found.leaves["truthfulqa_mc2"].eval_docs) == 1


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_known_to_the_harness_with_its_metrics(name):
    config = composed(f"evaluate/zero_shot={name}").evaluate.zero_shot
    index = task_manager().task_index
    for task in config.tasks:
        assert leaves_of(index, task)
        metric = config.metrics.get(task)
        known = [entry["metric"] for entry in index[leaves_of(index, task)[0]].cfg["metric_list"]]
        assert metric is None or metric in known


def test_the_nine_tasks_are_those_of_the_papers_table_17():
    config = composed("evaluate/zero_shot=nine").evaluate.zero_shot
    normalised = {"arc_challenge", "arc_easy", "piqa", "logiqa", "openbookqa"}
    plain = {"social_iqa", "truthfulqa_mc2", "winogrande", "boolq"}
    assert config.metrics == {**dict.fromkeys(normalised, "acc_norm"), **dict.fromkeys(plain, "acc")}
    assert set(config.tasks) == set(config.metrics)


def test_a_group_stands_for_its_tasks():
    leaves = leaves_of(task_manager().task_index, "mmlu")
    assert len(leaves) == 57
    assert "mmlu_philosophy" in leaves


def test_questions_have_one_identity_wherever_they_lie(folder, tmp_path):
    there = tasks_of(folder).identity("piqa", examples=False)
    assert tasks_of(fill(tmp_path / "other")).identity("piqa", examples=False) == there
    write(tmp_path / "other" / "piqa" / "train.jsonl", rows("piqa", 3))
    moved = tasks_of(tmp_path / "other")
    assert moved.identity("piqa", examples=False) == there
    assert moved.identity("piqa", examples=True) != tasks_of(folder).identity("piqa", examples=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["arc_eazy"]}, r"zero_shot\.tasks=arc_eazy: .*did you mean .*arc_easy"),
        ({"tasks": ["hellaswag"]}, r"tasks_dir=.*: hellaswag needs hellaswag/validation\.jsonl"),
        ({"tasks": ["mmlu"], "num_fewshot": 0}, r"needs mmlu_\w+/test\.jsonl"),
        ({"tasks": ["boolq"], "num_fewshot": 2}, r"boolq needs boolq/train\.jsonl"),
        ({"tasks": ["piqa"], "metrics": {"piqa": "f1"}}, r"metrics\.piqa=f1: the task has acc, acc_norm"),
    ],
)
def test_what_is_not_there_is_one_line(folder, options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        tasks_of(folder, **options)
    assert "\n" not in str(caught.value)


def test_no_other_split_takes_the_place_of_the_one_that_is_scored(folder):
    (folder / "arc_easy" / "test.jsonl").rename(folder / "arc_easy" / "validation.jsonl")
    with pytest.raises(ConfigError, match=r"arc_easy needs arc_easy/test\.jsonl"):
        tasks_of(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        tasks_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found logiqa.py"), "loading script"),
        (ConnectionError("Couldn't reach\nthe Hub"), "cannot be loaded"),
    ],
)
def test_data_that_the_hub_does_not_give_point_at_the_local_folder(monkeypatch, error, said):
    import datasets

    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=rf"zero_shot\.tasks=logiqa: .*{said}.*evaluate\.tasks_dir=FOLDER") as caught:
        harness_tasks(ZeroShotConfig(tasks=["logiqa"]), None)
    assert "\n" not in str(caught.value)
