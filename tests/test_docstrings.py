"""First lines of docstrings say what happens, not that something is what it is."""

import ast

from tests.conftest import ROOT

RIDDLES = {"what", "whether", "how", "where", "which", "when", "who"}
VERBS = """
    Add Adds Append Ask Begin Bring Brings Broadcast Build Calculate Call Capture Check Choose Clear Close
    Collect Compare Compute Computes Configure Continue Convert Copy Count Cut Decode Define Derive Describe
    Distil Distils Do Draw Drop Encode End Estimate Evict Extract Factorise Fill Find Fine-tune Finish Flatten
    Forecast Forget Format Freeze Give Go Hand Hash Have Hear Hold Identify Ignore Import Interleave Join Keep
    Keeps Key Leave Let List Load Loads Log Look Looks Make Mark Mask Measure Move Multiply Name Note Open Order
    Pad Pass Pick Pivot Plan Predict Print Propagate Put Raise Read Rebuild Receive Receives Record Refuse
    Register Remember Remove Render Replace Replays Resolve Return Run Sample Save Say Score Send Set Settle
    Share Shift Spell Stack Stand Stands Stops Store Sum Summarise Swaps Tabulate Take Takes Teach Teaches Tell
    Tells Time Transcribe Turn Turns Updates Wait Wrap Write Writes Yield
"""


def first_lines():
    """Yield the place and the first line of every docstring of the package."""
    for file in sorted((ROOT / "lillama").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


def test_most_docstrings_open_with_a_verb():
    """The others are of classes and choices, which name a thing."""
    verbs = VERBS.split()
    opened = [line.split()[0].rstrip(",:.") in verbs for _, line in first_lines()]
    assert sum(opened) > 0.6 * len(opened)


def test_no_docstring_opens_as_a_riddle():
    lines = list(first_lines())
    assert len(lines) > 1000
    riddles = [f"{place} {line}" for place, line in lines if line.split()[0].strip(",:").lower() in RIDDLES]
    assert not riddles
