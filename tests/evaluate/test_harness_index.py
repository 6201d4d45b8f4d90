"""The index of the harness's tasks is made once; what the cache holds of it is the same index."""

import json

import pytest

from lillama.core.cache import Cache, entries
from lillama.evaluate import harness_index
from lillama.evaluate.harness_index import KIND, kept_manager
from lillama.evaluate.tasks import task_manager


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A harness of three files and the calls that read them."""
    folder, made = tmp_path / "tasks", []
    folder.mkdir()
    (folder / "one.yaml").write_text("task: one\ntag: [both]\ndoc_to_text: !function utils.text\n")
    (folder / "two.yaml").write_text("include: one.yaml\ntask: two\nnum_fewshot: 3\n")
    (folder / "group.yaml").write_text("group: whole\ntask: [one, two]\n")

    def manager(include_path=folder, *, include_defaults=True, own=harness_index.TaskManager):
        if include_defaults:
            made.append(include_path)
        return own(include_path=include_path if include_defaults else None, include_defaults=False)

    monkeypatch.setattr(harness_index, "TaskManager", manager)
    monkeypatch.setattr(harness_index, "ROOT", folder)
    return folder, made


def test_the_second_finds_what_the_first_made(few, tmp_path):
    _, made = few
    first, second = (kept_manager(Cache(tmp_path)).task_index for _ in range(2))
    assert len(made) == 1
    assert first == second
    assert set(second) == {"one", "two", "both", "whole"}
    assert second["both"].tags == {"one", "two"}


def test_a_task_that_changed_is_read_again(few, tmp_path):
    folder, made = few
    kept_manager(Cache(tmp_path))
    (folder / "two.yaml").write_text("task: two\nnum_fewshot: 5\n")
    assert kept_manager(Cache(tmp_path)).task_index["two"].cfg["num_fewshot"] == 5
    assert len(made) == 2


def test_what_json_would_change_is_not_kept(few, tmp_path):
    folder, made = few
    for number, text in enumerate(("metadata: {day: 2024-01-01}", "metadata: {1: a}")):
        (folder / "two.yaml").write_text(f"task: two\n{text}\n")
        for _ in range(2):
            assert "two" in kept_manager(Cache(tmp_path)).task_index
        assert len(made) == 2 * number + 2
    assert not entries(tmp_path, [KIND])


@pytest.mark.long
def test_the_harnesss_own_index_can_be_kept():
    assert json.loads(harness_index._written(task_manager().task_index))
