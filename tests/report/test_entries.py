"""The cells of a table: which stand where, what they say when nothing was run, what the paper says beside them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.core.results import RunResult
from lillama.report.cells import Cell
from lillama.report.entries import make_table
from lillama.report.layout import TableConfig
from lillama.report.paper import FOLDER, as_number, printed_table, recomputed_mean

GIVEN = {"model": "phi2", "reduction": "0.2"}


def cell(status="done", *, error=None, overrides=None, **figures):
    own = overrides or {}
    known = {"fingerprint": "f", "name": "n", "settings": {}, "error": error}
    found = RunResult(status=status, overrides=[], provenance={"started": "now"}, **known, **figures).as_dict()
    return Cell(Path("cell"), own, found, GIVEN)


def table(cells, **config):
    made = make_table("t", TableConfig(title="T", **config), "paper", cells)
    return {(*entry.row, entry.column): entry for entry in made.entries}


def scores(mean):
    return {role: {"mean": {"score": value, "stderr": 0.01}} for role, value in mean.items()}


BY_LOSS = {
    "rows": {"Model": "{model}"},
    "columns": {"Teacher": {"loss": "teacher"}, "Student": {"loss": "student"}},
    "value": "zero_shot.mean.score | percent",
    "paper": ["table08_losses.csv"],
}


def test_conditions_pick_the_cell_and_the_paper_stands_beside():
    own = cell(overrides={"loss": "teacher"}, measured={"zero_shot": scores({"compressed": 0.6})})
    missing = Cell(Path("cell"), {"loss": "student"}, None, GIVEN)
    found = table([own, missing], **BY_LOSS)
    entry = found["Phi-2 3B", "Teacher"]
    assert (entry.status, entry.paper) == ("measured", "57.38")
    assert entry.value == pytest.approx(60)
    assert entry.stderr == pytest.approx(1)
    assert entry.difference == pytest.approx(60 - 57.38)
    left = found["Phi-2 3B", "Student"]
    assert (left.status, left.value, left.paper, left.open) == ("MISSING", None, "56.44", True)
    other = found["Mistral-v0.1 7B", "Teacher"]
    assert (other.status, other.value, other.open) == ("paper only", None, False)


@pytest.mark.parametrize(
    ("error", "status", "is_open"),
    [("DeviceMemoryError: out of device memory", "OOM", False), ("DivergedError: NaN", "FAILED", True)],
)
def test_a_failed_cell_says_why(error, status, is_open):
    found = table([cell("failed", error=error, overrides={"loss": "teacher"})], **BY_LOSS)
    entry = found["Phi-2 3B", "Teacher"]
    assert (entry.status, entry.value, entry.open) == (status, None, is_open)


def test_dense_and_compressed_have_rows_of_their_own_and_words_are_no_figures():
    speed = {"seconds": 1, "tokens_per_second": {"median": 10.0, "lowest": 9.0, "highest": 12.0}}
    own = cell(
        parameters={"dense": 100, "compressed": 80},
        measured={"throughput": {"dense": {"forward": {"512": "OOM"}}, "compressed": {"forward": {"512": speed}}}},
    )
    found = table(
        [own],
        roles=["dense", "compressed"],
        rows={"Model": "{model}", "Reduction": "{reduction}"},
        columns={"s": "throughput.forward.512.tokens_per_second", "x": "throughput.forward.9.tokens_per_second"},
    )
    dense, small = found["Phi-2 3B", "0%", "s"], found["Phi-2 3B", "20%", "s"]
    assert (dense.status, dense.value, dense.open) == ("OOM", None, False)
    assert (small.value, small.spread) == (10.0, (9.0, 12.0))
    assert found["Phi-2 3B", "20%", "x"].status == "no figure"


def test_what_a_cell_was_told_besides_is_said():
    own = cell(overrides={"loss": "teacher"}, measured={"zero_shot": scores({"compressed": 0.6})})
    told = ["loss=teacher", "scale=paper", "progress=false", "data.path=/x", "data.tokens=5"]
    own.result["overrides"] = told
    assert table([own], **BY_LOSS)["Phi-2 3B", "Teacher"].source["besides"] == "data.tokens=5"


def test_a_curve_has_a_row_a_point_and_the_nearest_of_the_papers():
    found = table(
        [cell(overrides={"loss": "teacher"}, curve=[[0, 7000.0], [500000, 21.0]])],
        along="curve",
        nearest="Seen Tokens",
        rows={"Model": "{model}", "Seen Tokens": "{tokens}"},
        columns={"Teacher": {"loss": "teacher"}},
        value="point",
        paper=["table12_convergence.csv"],
    )
    assert found["Phi-2 3B", "0", "Teacher"].paper == "7185.31"
    assert found["Phi-2 3B", "500000", "Teacher"].paper == "20.74"
    assert found["Phi-2 3B", "500000", "Teacher"].value == 21.0


def test_a_mapping_has_a_row_an_entry_and_words_where_words_are_asked_for():
    tasks = {"piqa": {"metric": "acc_norm"}, "boolq": {"metric": "acc"}}
    found = table(
        [cell(measured={"zero_shot": {"dense": {"tasks": tasks}}})],
        roles=["dense"],
        along="zero_shot.tasks",
        rows={"Task": "{key}"},
        columns={"Metric": "point.metric | words"},
        paper=["table17_metrics.csv"],
    )
    assert (found["piqa", "Metric"].text, found["piqa", "Metric"].paper) == ("acc_norm", "acc_norm")
    assert found["openbookqa", "Metric"].status == "paper only"


def test_the_papers_means_are_checked_against_its_scores():
    wrong = {
        file.name: [row["Model"] for row in printed_table([file.name]).rows if recomputed_mean(row)]
        for file in sorted(FOLDER.glob("table*.csv"))
        if "Average" in file.read_text(encoding="utf-8").splitlines()[0]
    }
    assert wrong.pop("table05_finetune.csv") == ["Mistral-v0.1 7B"]
    assert wrong.pop("table11_ratios.csv") == ["Phi-3 14B"]
    assert not any(wrong.values())


@given(st.floats(0, 1e6, allow_nan=False).map(lambda value: round(value, 2)))
def test_printed_figures_are_read_with_their_units(value):
    for text in (f"{value}", f"{value} t/s", f"{value} GB", f"{value}min"):
        assert as_number(text) == value
    for words in ("OOM", "20%", "-", "", None):
        assert as_number(words) is None
