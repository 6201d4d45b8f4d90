"""What the tests of experiments share: shapes of the paper's models, each made once, and runs of all cells."""

import pytest

from lillama.config.compose import experiment_sweep
from lillama.model.source import ModelSource
from lillama.model.targets import model_shape
from lillama.report.experiment import Places, experiment_tables
from lillama.report.names import named
from tests.evaluate.tasks_data import fill_all
from tests.whisper import make_speech, make_whisper


@pytest.fixture(scope="session")
def model_shapes(tmp_path_factory):
    """The shape of a configured model, on the meta device."""
    known = {}

    def shape(config):
        key = config.name, str(config.targets)
        if key not in known:
            known[key] = model_shape(ModelSource(config, tmp_path_factory.mktemp("cache")).meta, config.targets)
        return known[key]

    return shape


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return fill_all(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """What a run of speech is told: a model, and sound for everything."""
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    pytest.importorskip("jiwer", reason="jiwer is not installed")
    folder = tmp_path_factory.mktemp("sound")
    model, speech = make_whisper(folder / "whisper"), make_speech(folder / "speech")
    places = [f"{key}.path={speech}" for key in ("data", "finetune.data", "evaluate.wer")]
    return [
        f"model.path={model}",
        *places,
        "evaluate.wer.max_new_tokens=8",
        "data.tokens=64",
        "finetune.data.tokens=64",
    ]


def own_entries(home, sweep, places):
    """What the tables of an experiment have of a sweep's cells; others may add rows to them."""
    asked = {" ".join(cell) for cell in sweep.cells}
    entries = [entry for table in experiment_tables(home, "tiny", places) for entry in table.entries]
    return [entry for entry in entries if entry.source.get("overrides") in asked]


@pytest.fixture
def run_all(request, cli, tasks, tmp_path, monkeypatch):
    """Run all cells of an experiment on random models; its report is complete then, and was not before."""

    def check(name):
        monkeypatch.chdir(tmp_path)
        more = request.getfixturevalue("sound") if name == "table16_whisper" else []
        sweep = experiment_sweep(f"tiny/{name}")
        places = Places(outputs=tmp_path / "outputs", frozen=tmp_path / "none")
        home, _ = named(name)
        assert any(entry.status == "MISSING" for entry in own_entries(home, sweep, places))
        status, _, err = cli(f"experiments=tiny/{name}", f"evaluate.tasks_dir={tasks}", *more)
        assert status == 0, err
        assert len(list((tmp_path / "outputs" / sweep.name).glob("*/results.json"))) == len(sweep.cells)
        entries = own_entries(home, sweep, places)
        assert not [entry for entry in entries if entry.open]
        assert [entry for entry in entries if entry.status == "measured"]

    return check
