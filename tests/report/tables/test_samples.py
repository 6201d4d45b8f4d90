"""Generated texts beneath each other and side by side."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lillama.report.tables.samples import samples_page, samples_table

MEAN = {
    "tokens": 95.5,
    "ended": 0.5,
    "repetition": 0.125,
    "distinct_1": 0.5,
    "distinct_2": 0.75,
    "distinct_3": None,
}


def figures(*texts: tuple[str, int, str]) -> dict:
    return {"texts": [{"prompt": p, "seed": seed, "text": text} for p, seed, text in texts], "mean": MEAN}


def cells(line: str) -> list[str]:
    """A table's line as markdown splits it: a backslash escapes what follows."""
    return [cell.strip() for cell in re.findall(r"(?:\\.|[^|\\])*", line.strip()[1:-1]) if cell]


def test_a_block_a_prompt_and_a_row_a_model():
    dense = figures(("one", 0, "line\nbreak"), ("two", 0, "b"))
    shown = samples_table({"dense": dense, "compressed": figures(("one", 0, "c"), ("two", 0, "d"))})
    blocks = shown.split("\n\n")
    assert blocks[:2] == ["**one**", "- dense: line break\n- compressed: c"]
    assert blocks[2:4] == ["**two**", "- dense: b\n- compressed: d"]
    rows = blocks[4].splitlines()
    assert len(blocks) == 5
    assert cells(rows[2]) == ["dense", "0.125", "0.500", "0.750", "-", "95.5", "50%"]


def test_seeds_are_named_where_there_are_several():
    shown = samples_table({"dense": figures(("one", 4, "a"), ("one", 7, "b"))})
    assert "- dense (seed 4): a\n- dense (seed 7): b" in shown
    assert "seed" not in samples_table({"dense": figures(("one", 4, "a"))})


def test_a_page_has_a_column_for_every_set():
    page = samples_page({"dense": figures(("one", 0, "a"), ("one", 1, "b")), "20%": figures(("one", 0, "c"))})
    title, texts, metrics = page.split("\n\n")
    assert title == "**one**"
    assert [cells(line) for line in texts.splitlines()[::2]] == [["seed", "dense", "20%"], ["0", "a", "c"]]
    assert cells(texts.splitlines()[3]) == ["1", "b", "MISSING"]
    assert [cells(line)[0] for line in metrics.splitlines()[2:]] == ["dense", "20%"]


@given(st.text(), st.text(alphabet="|\\\n\r<`a"))
def test_no_text_breaks_a_table(first, second):
    page = samples_page({"dense": figures(("one", 0, first)), "small": figures(("one", 0, second))})
    lines = page.split("\n\n")[1].split("\n")
    assert len(lines) == 3
    assert page.splitlines() == page.split("\n"), "no other line breaks"
    bare = re.sub(r"\\.", "", lines[2])
    assert bare.count("|") == 4
    assert "<" not in bare
