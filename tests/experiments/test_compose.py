"""Every cell of every experiment, at every scale that it has, is a legal run; its plan fits the paper's sizes."""

from functools import cache

import pytest

from lillama.compose import experiment_names, experiment_sweep
from lillama.config import ModelConfig, Stage, Weights
from lillama.errors import ConfigError
from lillama.report.paper import FOLDER
from lillama.strategy import make_plan
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
    for table in sweep_of(name, None).experiment.tables.values():
        for file in table.paper:
            headers = (FOLDER / file).read_text(encoding="utf-8").splitlines()[0].split(",")
            assert set(table.rows) & set(headers), file
            assert set(table.columns) & set(headers), file


def test_a_scale_that_is_not_there_is_named():
    with pytest.raises(Exception, match="this experiment has paper, tiny"):
        experiment_sweep("table06_mamba", "small")
    with pytest.raises(ConfigError, match="there is none"):
        experiment_sweep("table99", None)


@pytest.mark.parametrize("name", ["table02_zero_shot", "table06_mamba", "table11_ratios"])
def test_plans_at_the_papers_scale_meet_what_is_asked(name, model_shapes):
    for cell in sweep_of(name, "paper").cells:
        config = composed(f"experiments={name}", "scale=paper", *cell)
        plan = make_plan(model_shapes(config.model), config.strategy)
        asked = config.strategy.reduction
        assert Stage.distill in config.stages
        assert asked <= plan.realised < asked + 0.01, cell


SMOLLM2 = {  # the file of the model itself is read by the tests of the real one
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", ["figure4_ranks", "table10_strategies", "table11_ratios"])
def test_plans_at_the_small_scale_meet_what_is_asked(name, model_shapes):
    shape = model_shapes(ModelConfig(name="smollm2", weights=Weights.random, architecture=SMOLLM2))
    assert shape.parameters == 134_515_008
    for cell in sweep_of(name, "small").cells:
        config = composed(f"experiments={name}", "scale=small", *cell)
        assert config.model.name == "smollm2_135m"
        plan = make_plan(shape, config.strategy)
        assert config.strategy.reduction <= plan.realised < config.strategy.reduction + 0.01, cell


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("experiments=table04_small_models", "model=phi2"), 1.727e9),
        (("experiments=table18_hausa", "model=inkubalm"), 0.2996e9),
        (("experiments=table02_zero_shot", "model=phi2"), 2.22e9),
        (("experiments=table02_zero_shot", "model=mixtral_8x7b"), 37.3e9),
    ],
)
def test_models_come_out_at_the_papers_sizes(words, size, model_shapes):
    config = composed(*words)
    plan = make_plan(model_shapes(config.model), config.strategy)
    assert plan.parameters == pytest.approx(size, rel=0.002)
