"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module

import pytest

from lillama.config.compose import set_up
from tests.conftest import ROOT

MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "lillama").rglob("*.py"))
    if ">>>" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    set_up()
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 0
    assert failed == 0


def test_what_users_call_has_an_example():
    finder = doctest.DocTestFinder()
    found = [test.name for name in MODULES for test in finder.find(import_module(name)) if test.examples]
    assert len(found) >= 20
    assert "lillama.run.api" in found
