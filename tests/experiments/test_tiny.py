"""Every experiment runs, all its cells, on random models; its report is then complete."""

import pytest

from lillama.compose import experiment_names, experiment_sweep
from lillama.report.experiment import Places, experiment_tables
from tests.evaluate.tasks_data import fill_all

TABLES = [name for name in experiment_names() if not name.startswith(("bench_", "table16"))]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return fill_all(tmp_path_factory.mktemp("tasks"))


@pytest.mark.parametrize("name", TABLES)
def test_all_cells_run_and_the_report_is_complete(name, tasks, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = experiment_sweep(name, "tiny")
    places = Places(outputs=tmp_path / "outputs", frozen=tmp_path / "none")
    before = [entry for table in experiment_tables(name, "tiny", places) for entry in table.entries]
    assert any(entry.status == "MISSING" for entry in before)
    status, _, err = cli(f"experiments={name}", "scale=tiny", f"evaluate.tasks_dir={tasks}")
    assert status == 0, err
    assert len(list((tmp_path / "outputs" / sweep.name).glob("*/results.json"))) == len(sweep.cells)
    for table in experiment_tables(name, "tiny", places):
        assert not [entry for entry in table.entries if entry.open], table.name
        assert [entry for entry in table.entries if entry.status == "measured"], table.name
