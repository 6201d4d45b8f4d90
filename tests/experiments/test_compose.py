"""Every cell of every experiment, at every scale that it has, is a legal run."""

from functools import cache

import pytest

from lillama.config.compose import experiment_names, experiment_sweep
from lillama.core.errors import ConfigError
from lillama.report.paper import FOLDER
from tests.conftest import ROOT, composed

NAMES = experiment_names()
TABLES = [name for name in NAMES if not name.startswith("bench_")]
SCALES = ("paper", "small", "shapes")  # at scale=tiny all cells are run
# What a run of speech cannot know by itself.
SOUND = {"table16_whisper": ["data.path=sound", "finetune.data.path=sound", "model.path=whisper"]}


@pytest.fixture(autouse=True)
def data_folder(monkeypatch):
    monkeypatch.setenv("LILLAMA_DATA", "somewhere")


sweep_of = cache(experiment_sweep)


def sweep_at(name, scale):
    try:
        return sweep_of(name, scale)
    except Exception as error:
        if "this experiment has" not in str(error):
            raise
        return None


def covering(cells):
    """A few cells in which every override of the sweep occurs; the whole product is run at scale=tiny."""
    left = set().union(*cells)
    while True:
        cell = max(cells, key=lambda cell: len(left & set(cell)))
        yield cell
        left -= set(cell)
        if not left:
            return


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_it_is_what_it_costs_and_how_to_run_it(name):
    text = (ROOT / "experiments" / f"{name}.yaml").read_text()
    for word in ("# @package _global_", "The paper", "Cost:", f"experiments={name}"):
        assert word in text


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_composes_and_validates(name, scale):
    sweep = sweep_at(name, scale)
    if sweep is None:
        assert scale in ("small", "shapes") or name.startswith("ask_"), "the paper has no such question"
        return
    assert sweep.name == f"{name}/{scale}"
    assert sweep.experiment.tables
    for cell in covering(sweep.cells):
        config = composed(f"experiments={name}", f"scale={scale}", *cell, *SOUND.get(name, []))
        assert config.scale == scale
        assert config.stages


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TABLES])
def test_every_cell_of_a_benchmark_composes_and_validates(name):
    cells = sweep_of(name, None).cells
    assert len(cells) > 1
    for cell in covering(cells):
        composed(f"experiments={name}", *cell)


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_cells_are_there_under_the_tables_headers(name):
    sweep = next(filter(None, (sweep_at(name, scale) for scale in SCALES)))
    for table in sweep.experiment.tables.values():
        for file in table.paper:
            headers = (FOLDER / file).read_text(encoding="utf-8").splitlines()[0].split(",")
            assert set(table.rows) & set(headers), file
            assert set(table.columns) & set(headers), file


def test_a_scale_that_is_not_there_is_named():
    with pytest.raises(Exception, match="this experiment has paper, tiny"):
        experiment_sweep("table06_mamba", "small")
    with pytest.raises(ConfigError, match="there is none"):
        experiment_sweep("table99", None)
