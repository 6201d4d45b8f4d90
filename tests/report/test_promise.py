"""A sweep's multirun.yaml is data, whoever wrote it."""

import json

import pytest
import yaml

from lillama.config.compose import EXPERIMENTS, experiment_sweep
from lillama.core.errors import ConfigError
from lillama.report.__main__ import main
from lillama.report.cells import promised_overrides

SECRET = "hunter2"


def promised(folder, params, *, task=()):
    hydra = {"sweeper": {"params": params}, "overrides": {"task": list(task)}}
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra, "scale": "${oc.env:SECRET}"}))
    return promised_overrides(folder)


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)


@pytest.mark.parametrize(
    "said",
    [
        {"params": {"strategy.k": "${oc.env:SECRET}"}},
        {"params": {"strategy.k": "1,2"}, "task": ["name=${oc.env:SECRET}"]},
        {"params": {"${oc.env:SECRET}": "1,2"}},
        {"params": {"model": "${env:SECRET}"}},
        {"params": {"model": "${stdlib:}"}},
    ],
)
def test_nothing_of_it_is_interpolated(said, tmp_path, capsys):
    cells = promised(tmp_path, **said)
    assert SECRET not in str(cells)
    main([str(tmp_path)])
    assert SECRET not in "".join(capsys.readouterr())


def test_what_the_file_does_not_say_by_itself_is_told(tmp_path, capsys):
    assert promised(tmp_path, {"strategy.k": "${ranks.k},2"}) == []
    assert "does not say by itself which cells" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["paper/table08_losses", "tiny/figure4_ranks"])
def test_an_experiments_own_cells_are_promised_by_its_file(name, tmp_path):
    """As Hydra writes it: not interpolated."""
    params = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert promised(tmp_path, params) == experiment_sweep(name).cells


@pytest.mark.parametrize(
    "text", ["", "[", "hydra:", "hydra: 1", "\x00", "hydra: {sweeper: [], overrides: {}, runtime: {}}", "[" * 5000]
)
def test_a_broken_one_is_named_in_a_line(text, tmp_path, capsys):
    (tmp_path / "multirun.yaml").write_text(text)
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "multirun.yaml") in line


def test_a_python_object_in_it_is_not_made(tmp_path):
    (tmp_path / "multirun.yaml").write_text("hydra: !!python/object/apply:os.system ['touch made']")
    with pytest.raises(ConfigError):
        promised_overrides(tmp_path)


@pytest.mark.parametrize("params", [{"seed": "range(0,10000000000)"}, {f"x{n}": "range(0,100)" for n in range(9)}])
def test_a_sweep_without_end_is_refused(params, tmp_path):
    with pytest.raises(ConfigError, match="more than 100,000 cells"):
        promised(tmp_path, params)


def test_control_characters_of_a_result_do_not_reach_the_terminal(tmp_path, capsys):
    cell = tmp_path / "cell"
    cell.mkdir()
    result = {"fingerprint": "x", "status": "failed", "overrides": ["k=\x1b[2J"], "error": "\x1b]0;owned\x07\u202e"}
    (cell / "results.json").write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 1
    assert not set("".join(capsys.readouterr())) & set("\x1b\x07\u202e")
