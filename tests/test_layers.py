"""Imports run downward: a module may import from its own package and from the floors below only."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the ground up, a package a line where one stands on the other.
FLOORS = [
    {"core"},
    {"config"},
    {"algebra"},
    {"model"},
    {"data", "strategy"},
    {"init", "distill", "evaluate"},
    {"finetune"},
    {"report"},
    {"bench"},
    {"run"},
    {"__main__"},
]
WITH_TORCH = {"core/machine.py"}
WITHOUT_TORCH = [
    str(path.relative_to(ROOT / "lillama"))
    for package in ("core", "core/cache", "config", "report", "report/tables")
    for path in sorted((ROOT / "lillama" / package).glob("*.py"))
    if str(path.relative_to(ROOT / "lillama")) not in WITH_TORCH
]
MODULES = sorted(path for path in (ROOT / "lillama").rglob("*.py") if path != ROOT / "lillama" / "__init__.py")


def floor_of(module: str) -> int:
    for level, names in reversed(list(enumerate(FLOORS))):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return level
    raise AssertionError(f"{module} stands on no floor")


def own_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "lillama").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, *, everywhere: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else tree.body
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def package_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_imports_run_downward(path):
    own = own_name(path)
    for name in imports_of(path, everywhere=True):
        assert name != "lillama", f"{own} imports from the package's top, which stands on everything"
        if not name.startswith("lillama."):
            continue
        other = name.removeprefix("lillama.")
        inside = package_of(own) == package_of(other)
        assert inside or floor_of(other) < floor_of(own), f"{own} imports {other}, which is not below it"


def test_what_travels_with_a_checkpoint_imports_nothing_of_the_package():
    for path in sorted((ROOT / "lillama" / "model" / "lowrank").glob("*.py")):
        others = {name for name in imports_of(path, everywhere=True) if package_of(name) == "lillama"}
        assert all(name.startswith("lillama.model.lowrank") for name in others), path


def test_the_package_has_few_names_at_its_top():
    names = [path.name for path in (ROOT / "lillama").iterdir() if not path.name.startswith("__")]
    assert len(names) <= 14
    assert not [name for name in names if name.endswith(".py")], "a module stands in a folder that says what it is for"


def test_the_core_needs_neither_wandb_nor_datasets_nor_the_harness():
    optional = {"wandb", "datasets", "lm_eval", "gguf", "pyarrow", "matplotlib", "jiwer", "soundfile", "peft"}
    late = {"evaluate.harness_index"}  # imported only where the harness is used
    for path in MODULES:
        names = imports_of(path, everywhere=False)
        assert not {f"lillama.{own}" for own in late} & names, path
        assert own_name(path) in late or not {package_of(name) for name in names} & optional, path


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_configuration_and_reports_have_no_use_for_torch(name):
    assert not {package_of(other) for other in imports_of(ROOT / "lillama" / name, everywhere=False)} & {
        "torch",
        "transformers",
    }


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = [node.name for node in functions if node.end_lineno - node.lineno + 1 > 60]
    assert long == []
