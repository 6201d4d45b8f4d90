"""First lines of docstrings say what happens, not that something is what it is."""

import ast

from tests.conftest import ROOT

RIDDLES = {"what", "whether", "how", "where", "which", "when", "who"}


def first_lines():
    """Yield the place and the first line of every docstring of the package."""
    for file in sorted((ROOT / "lillama").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


def test_no_docstring_opens_as_a_riddle():
    lines = list(first_lines())
    assert len(lines) > 1000
    riddles = [f"{place} {line}" for place, line in lines if line.split()[0].strip(",:").lower() in RIDDLES]
    assert not riddles
