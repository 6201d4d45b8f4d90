"""The worked example of docs/methods.md, as it stands there, is a strategy like any other."""

import re
import sys
from types import ModuleType

import pytest
from hydra.core.config_store import ConfigStore

from lillama.config import option, strategy
from lillama.core.results import read_json
from lillama.model.targets import model_shape
from lillama.strategy import make_plan
from tests.conftest import ROOT, TINY_RUN

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
SCHEMA, FUNCTION, TEST = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
(OPTION,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
TINY_ALTERNATE = [word for word in TINY_RUN if not word.startswith("strategy")] + [
    "strategy=alternate",
    "strategy.reduction=0.1",
    "stages=[plan]",
]
NAME = "lillama.strategy.alternate"


@pytest.fixture
def added(monkeypatch, tmp_path):
    """The files of the example, in place for a while; the folder that holds its option."""
    monkeypatch.setattr(option, "SCHEMAS", {group: dict(own) for group, own in option.SCHEMAS.items()})
    monkeypatch.setattr(option, "METHODS", dict(option.METHODS))
    names = dict(vars(strategy))
    exec(compile(SCHEMA, "strategy.py", "exec"), names)
    monkeypatch.setattr(strategy, "AlternateConfig", names["AlternateConfig"], raising=False)
    known = ConfigStore.instance().repo["strategy"]
    monkeypatch.setitem(known, "alternate_schema.yaml", None)
    ConfigStore.instance().store("alternate_schema", option.SCHEMAS["strategy"]["alternate_schema"], group="strategy")
    module = ModuleType(NAME)
    exec(compile(FUNCTION, "alternate.py", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, NAME, module)
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "alternate.yaml").write_text(OPTION)
    return tmp_path


def test_its_test_passes(added, tiny_model):
    names = {"make_plan": make_plan, "AlternateConfig": strategy.AlternateConfig}
    exec(compile(TEST, "test_alternate.py", "exec"), names)
    names["test_every_second_block_is_cut"](model_shape(tiny_model))


def test_the_command_line_knows_it(added, cli, tmp_path):
    words = [f"--config-dir={added}", *TINY_ALTERNATE, f"hydra.run.dir={tmp_path / 'run'}"]
    status, _, err = cli(*words)
    assert status == 0, err
    names = read_json(tmp_path / "run" / "plan.json")["ranks"]
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in names} == {0, 2}
    status, _, err = cli(*words, "strategy.step=0")
    assert status == 2
    assert "strategy.step=0: must be a positive integer" in err


@pytest.mark.parametrize("schema", option.METHODS, ids=lambda schema: schema.__name__)
def test_what_a_configuration_names_is_there(schema):
    assert callable(option.method(object.__new__(schema)))


def test_every_option_begins_with_a_schema_that_is_registered():
    names = {name for own in option.SCHEMAS.values() for name in own}
    for file in (ROOT / "conf").rglob("*.yaml"):
        said = set(re.findall(r"\b\w+_schema\b", file.read_text(encoding="utf-8")))
        assert said <= names, file
