"""Every cell of every experiment is a legal run, and its file says what it is."""

import re

import pytest
import yaml

from lillama.config.compose import experiment_names, experiment_sweep, scales_of
from lillama.core.errors import ConfigError
from lillama.report.layout import table_layouts
from lillama.report.paper import FOLDER
from tests.conftest import ROOT, composed
from tests.marks import long_unless

NAMES = experiment_names()
RUN_ELSEWHERE = [name for name in NAMES if name.startswith("tiny/")]  # all of their cells are run
# What a run of speech cannot know by itself.
SOUND = {"paper/table16_whisper": ["data.path=sound", "finetune.data.path=sound", "model.path=whisper"]}


@pytest.fixture(autouse=True)
def data_folder(monkeypatch):
    monkeypatch.setenv("LILLAMA_DATA", "somewhere")


def covering(cells):
    """A few cells in which every override of the sweep occurs; the whole product is run at scale=tiny."""
    left = set().union(*cells)
    while True:
        cell = max(cells, key=lambda cell: len(left & set(cell)))
        yield cell
        left -= set(cell)
        if not left:
            return


def text_of(name):
    return (ROOT / "experiments" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is_what_it_costs_and_how_to_run_it(name):
    text = text_of(name)
    words = ["# @package _global_", f"experiments={name}"]
    for word in words if name in RUN_ELSEWHERE else [*words, "The paper", "Cost:"]:
        assert word in text


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_plain_and_names_its_preset(name):
    """Read by itself it says which recipe it runs: nothing in it is looked up by scale or by model."""
    own = yaml.safe_load(text_of(name))
    groups = {key.removeprefix("override /"): option for entry in own["defaults"] for key, option in entry.items()}
    assert groups["preset"] in ("paper", "local", "recommended", "authors_code")
    assert groups.get("scale", "bench") == name.partition("/")[0]
    assert all(value.startswith("${env:LILLAMA_DATA}") or value in ALLOWED for value in looked_up(own))


# One budget said once, and sizes of a benchmark's model that hang together.
ALLOWED = ("${data.tokens}", "${data.path}", "${model.architecture.hidden_size}")


def looked_up(values):
    """The strings in nested values that are not plain."""
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return [found for value in inner for found in looked_up(value)]
    return [values] if "${" in str(values) else []


def test_a_scale_holds_sizes_and_no_method():
    """Groups are an experiment's to choose; random weights are what makes the scale of shapes."""
    for file in (ROOT / "conf" / "scale").glob("*.yaml"):
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert own["scale"] == file.stem
        keys = {"scale", "ranks", "data", "finetune", "evaluate", "progress", "save_checkpoint"}
        assert set(own) <= keys | ({"model"} if file.stem == "shapes" else set())


@pytest.mark.parametrize(
    "name",
    long_unless(lambda name: not name.startswith("paper/"), [name for name in NAMES if name not in RUN_ELSEWHERE]),
)
def test_its_first_cell_composes_and_validates(name):
    sweep = experiment_sweep(name)
    scale, _, own = name.partition("/")
    assert sweep.name == (f"bench_{own}" if scale == "bench" else f"{own}/{scale}")
    config = composed(f"experiments={name}", *sweep.cells[0], *SOUND.get(name, []))
    assert config.scale == (None if scale == "bench" else scale)
    assert config.stages


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in RUN_ELSEWHERE])
def test_every_cell_composes_and_validates(name):
    for cell in covering(experiment_sweep(name).cells):
        assert composed(f"experiments={name}", *cell, *SOUND.get(name, [])).stages


@pytest.mark.parametrize("name", table_layouts())
def test_a_table_shows_experiments_and_the_papers_cells_under_its_headers(name):
    layout = table_layouts()[name]
    assert layout.experiments
    assert all(map(scales_of, layout.experiments))
    for file in layout.paper:
        headers = (FOLDER / file).read_text(encoding="utf-8").splitlines()[0].split(",")
        assert set(layout.rows) & set(headers), file
        assert set(layout.columns) & set(headers), file


def test_every_experiment_is_shown_by_a_table():
    shown = {one for layout in table_layouts().values() for one in layout.experiments}
    assert shown == {name.partition("/")[2] for name in NAMES if not name.startswith("bench/")}


def test_an_experiment_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"small/table06_mamba: there is none; there are .*paper/table06"):
        experiment_sweep("small/table06_mamba")


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (
            ["experiments=table02_zero_shot", "scale=small"],
            "experiments=table02_zero_shot scale=small: is called experiments=small/table02_zero_shot",
        ),
        (["experiments=table06_mamba"], "is called experiments=paper/table06_mamba or experiments=tiny/table06_mamba"),
        (["experiments=table06_mamba", "scale=small"], "this experiment has paper, tiny"),
        (["experiments=bench_gpu"], "is called experiments=bench/gpu"),
        (["loss=loss_schema"], "loss: a schema is no option; there are student, teacher, teacher_student"),
    ],
)
def test_a_word_that_means_nothing_is_refused_in_a_line(words, now, cli):
    status, out, err = cli(*words)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{re.escape(now)}\n", err)
