import datasets
import pytest

from lillama.config import ZeroShotConfig
from lillama.evaluate.prefetch import main
from lillama.evaluate.tasks import harness_tasks
from lillama.evaluate.zero_shot import zero_shot
from tests.evaluate.tasks_data import rows

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(monkeypatch):
    """The Hub's PIQA, as the harness would get it: three splits, the label a class."""
    features = datasets.Features(
        {
            **dict.fromkeys(("goal", "sol1", "sol2"), datasets.Value("string")),
            "label": datasets.ClassLabel(num_classes=2),
        }
    )
    splits = {"train": (4, 5), "validation": (6, 0), "test": (3, 2)}
    found = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(rows("piqa", count, seed=seed), features=features)
            for split, (count, seed) in splits.items()
        }
    )
    plain = datasets.load_dataset

    def load_dataset(path, name=None, **options):
        if path == "json":
            return plain(path, name, **options)
        if path != "baber/piqa":
            raise ConnectionError(f"Couldn't reach {path}")
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("shots", [0, 2])
def test_the_same_scores_come_out_of_the_folder(tiny_model, tokenizer, tmp_path, capsys, shots):
    config = ZeroShotConfig(tasks=["piqa"], num_fewshot=shots)
    direct = zero_shot(tiny_model, tokenizer, harness_tasks(config, None), config)["tasks"]["piqa"]
    assert main([str(tmp_path), "piqa"]) == 0
    assert "piqa: train 4, validation 6" in capsys.readouterr().out
    local = zero_shot(tiny_model, tokenizer, harness_tasks(config, str(tmp_path)), config)["tasks"]["piqa"]
    assert {**local, "seconds": 0} == {**direct, "seconds": 0}
    assert local["documents"] == 6


def test_what_cannot_be_had_is_named_and_the_rest_is_fetched(tmp_path, capsys):
    assert main([str(tmp_path), "logiqa", "piqa", "piqaa"]) == 1
    out, err = capsys.readouterr()
    assert "piqa: " in out
    assert [line.partition("tasks=")[2].partition(":")[0] for line in err.splitlines()] == ["logiqa", "piqaa"]
    assert sorted(place.name for place in (tmp_path / "piqa").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_a_set_is_fetched_by_its_name(tmp_path, capsys):
    main([str(tmp_path)])
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 8  # the other eight of the nine
    assert (tmp_path / "piqa" / "validation.jsonl").is_file()
