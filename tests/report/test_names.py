"""A report is asked for by an experiment's name, a table's, or the paper's number of it."""

import subprocess
import sys

import pytest

from lillama.core.errors import ConfigError
from lillama.report.names import experiments_of, named
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "experiment", "tables"),
    [
        ("table11_ratios", "table11_ratios", ["table11_ratios", "table11_perplexity"]),
        ("table11", "table11_ratios", ["table11_ratios", "table11_perplexity"]),
        ("table2", "table02_zero_shot", ["table02_zero_shot"]),
        ("figure5", "figure5_starts", ["figure5_starts"]),
        ("table09_time", "table10_strategies", ["table09_time"]),
        ("table09", "table10_strategies", ["table09_memory", "table09_time"]),
        ("table12", "table08_losses", ["table12_convergence"]),
        ("figure3", "table08_losses", ["figure3_convergence"]),
        ("table13", "table03_speed", ["table03_speed"]),
        ("table04_dense", "table04_small_models", ["table04_small_models"]),
    ],
)
def test_a_table_may_be_called_by_its_number_in_the_paper(name, experiment, tables):
    assert named(name) == (experiment, tables)


@pytest.mark.parametrize("name", ["table99", "table", "figure", "table1x", "table12_nothing", "12"])
def test_a_name_that_means_nothing_is_told_what_there_is(name):
    with pytest.raises(ConfigError, match=f"{name}: no such folder, experiment or table; there are .*table02"):
        named(name)


def test_make_learns_the_experiments_of_a_table():
    def called(*words):
        command = [sys.executable, "-m", "lillama.report.names", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip(), done.stderr

    assert called("table12", "small")[:2] == (0, "small/table08_losses")
    assert called("table04", "paper")[:2] == (0, "paper/table04_small_models paper/table04_dense")
    status, out, err = called("table99", "paper")
    assert (status, out) == (1, "")
    assert err.startswith("error: table99: ") and err.count("\n") == 1


def test_an_experiment_is_run_at_the_scales_that_it_has():
    assert experiments_of("table04", "small") == ["small/table04_small_models"]
    assert experiments_of("table06", "small") == []
