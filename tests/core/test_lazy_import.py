"""An action that waits for a module: done once, after the module is whole, whether it is imported before or later."""

import subprocess
import sys

import pytest

from lillama.core.lazy_import import on_import
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "wandb", "lm_eval")


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """The name of a module that nobody has imported."""
    (tmp_path / "slow_to_import.py").write_text("value = 1\nvalue = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "slow_to_import"
    sys.modules.pop("slow_to_import", None)


def test_the_action_waits_until_the_module_is_whole_and_is_done_once(slow):
    finders, seen = list(sys.meta_path), []
    on_import(slow, lambda: seen.append(sys.modules[slow].value))
    assert seen == []
    __import__(slow)
    __import__(slow)
    assert seen == [2]
    assert sys.meta_path == finders


def test_of_a_module_that_is_there_it_is_done_at_once(slow):
    seen = []
    __import__(slow)
    on_import(slow, lambda: seen.append(True))
    assert seen == [True]


def test_two_actions_for_one_module_are_both_done(slow):
    seen = []
    on_import(slow, lambda: seen.append("first"))
    on_import(slow, lambda: seen.append("second"))
    __import__(slow)
    assert sorted(seen) == ["first", "second"]


def test_a_module_that_is_not_there_stays_an_import_error():
    on_import("no_such_module_at_all", lambda: pytest.fail("there is no such module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        __import__("no_such_module_at_all")


@pytest.mark.parametrize("module", ["lillama", "run", "lillama.report.__main__", "lillama.bench.__main__"])
def test_what_a_command_line_imports_first_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_packages_names_are_there_and_others_are_not():
    import lillama

    assert callable(lillama.compress) and callable(lillama.load_checkpoint) and callable(lillama.save_checkpoint)
    assert set(lillama.__all__) <= set(dir(lillama))
    with pytest.raises(AttributeError, match="has no attribute 'decompress'"):
        _ = lillama.decompress
