"""Figures of tables: their specification, and gaps where nothing was measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from lillama.core.errors import ConfigError
from lillama.report.cells import Cell
from lillama.report.entries import make_table
from lillama.report.figure import figure_png
from lillama.report.layout import TableConfig
from lillama.report.series import along_x, by_row
from lillama.report.spec import figure_spec
from tests.report.sweeps import finished, zero_shot

PNG = b"\x89PNG"
LOSSES = {"Teacher": {"loss": "teacher"}, "Student": {"loss": "student"}, "Tea+Stu": {"loss": "teacher_student"}}
CURVE = {
    "along": "curve",
    "nearest": "Seen Tokens",
    "rows": {"Model": "{model}", "Seen Tokens": "{tokens}"},
    "columns": LOSSES,
    "value": "point",
    "paper": ["table12_convergence.csv"],
    "figure": {"kind": "curve", "x": "Seen Tokens"},
}
RANKS = {
    "rows": {"Model": "{model}", "k": "{k}"},
    "columns": {"mean": "zero_shot.mean.score | percent"},
    "figure": {"kind": "line", "x": "k"},
}


def table(cells, **settings):
    config = TableConfig(title="A title", **settings)
    given = {"model": "phi2", "reduction": "0.2"}
    return make_table("t", config, "paper", [replace(cell, given=given) for cell in cells])


def spec(made):
    found = figure_spec(made.name, made.config)
    assert found is not None
    return found


def curves():
    points = [(0, 7000.0), (1_000_000, 20.0), (2_000_000, 10.0)]
    done = [Cell(Path(loss), {"loss": loss}, finished([], curve=points)) for loss in ("teacher", "teacher_student")]
    return [*done, Cell(Path("student"), {"loss": "student"}, None)]


def ranks():
    """k = 8 measured, 16 out of memory, 24 never run, 32 measured."""
    scores = {"zero_shot": {"compressed": zero_shot(0.5)}}
    oom = finished([], status="failed", error="DeviceMemoryError: no")
    results = {"8": finished([], measured=scores), "16": oom, "24": None, "32": finished([], measured=scores)}
    return [Cell(Path(k), {"strategy.k": k}, result) for k, result in results.items()]


def test_a_curve_has_the_papers_points_at_the_papers_tokens():
    made = table(curves(), **CURVE)
    teacher = next(series for series in along_x(made, spec(made)) if series.column == "Teacher")
    assert [(one.x, one.value) for one in teacher.points] == [(0, 7000.0), (1e6, 20.0), (2e6, 10.0)]
    assert teacher.paper[1] == (532480, 20.74)
    assert figure_png(made)[:4] == PNG


def test_a_curve_that_was_not_run_is_a_gap_at_its_neighbours_points():
    made = table(curves(), **CURVE)
    student = next(s for s in along_x(made, spec(made)) if (s.group, s.column) == ("Phi-2 3B", "Student"))
    assert [one.gap for one in student.points] == ["MISSING"] * 3
    assert not any(one.measured for one in student.points)


def test_what_the_paper_prints_of_other_models_is_a_group_of_its_own():
    made = table(curves(), **CURVE)
    found = {series.group: series for series in along_x(made, spec(made))}
    assert set(found) == {"Phi-2 3B", "Mistral-v0.1 7B", "Phi-3 14B"}
    assert found["Phi-3 14B"].points == []


def test_out_of_memory_and_missing_leave_gaps_in_a_line_and_no_zeros():
    made = table(ranks(), **RANKS)
    (line,) = along_x(made, spec(made))
    assert [one.x for one in line.points] == [8, 16, 24, 32]
    assert [one.gap for one in line.points] == ["", "OOM", "MISSING", ""]
    assert [one.measured for one in line.points] == [True, False, False, True]
    assert line.points[0].up == pytest.approx(1.23)
    assert figure_png(made)[:4] == PNG


def test_a_line_runs_along_a_share_and_the_dense_model_has_no_rise_of_the_loss():
    rises = {"0.2": {"predicted": 0.2, "measured": 0.3}, "0.1": {"predicted": 0.05, "measured": 0.06}}
    done = [Cell(Path(cut), {"strategy.reduction": cut}, finished([], loss_rise=rise)) for cut, rise in rises.items()]
    columns = {name: f"loss_rise.{name}" for name in ("predicted", "measured")}
    rows = {"Model": "{model}, {role}", "Reduction": "{reduction}"}
    drawn = {"kind": "line", "x": "Reduction"}
    made = table(done, rows=rows, columns=columns, figure=drawn, roles=["dense", "compressed"])
    found = {(series.column, "compressed" in series.group): series.points for series in along_x(made, spec(made))}
    assert [(one.x, one.value) for one in found["predicted", True]] == [(10, 0.05), (20, 0.2)]
    assert [(one.x, one.value) for one in found["measured", True]] == [(10, 0.06), (20, 0.3)]
    assert not any(one.measured for key, points in found.items() if not key[1] for one in points)
    assert figure_png(made)[:4] == PNG


def test_bars_of_rows_without_a_figure_are_gaps():
    made = table(ranks(), **{**RANKS, "figure": {"kind": "bars"}})
    (bars,) = by_row(made, spec(made))
    assert [one.gap for one in bars.points] == ["", "OOM", "MISSING", ""]
    assert figure_png(made)[:4] == PNG


def test_nothing_measured_and_nothing_printed_is_no_figure():
    assert figure_png(table([Cell(Path("a"), {"strategy.k": "8"}, None)], **RANKS)) is None
    assert figure_png(table(ranks(), **{**RANKS, "figure": {}})) is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "pie"}, "kind=pie"),
        ({"kind": "line"}, "x=None"),
        ({"kind": "line", "x": "Tokens"}, "x=Tokens"),
        ({"kind": "bars", "columns": ["median"]}, "columns=median"),
        ({"kind": "bars", "colour": "red"}, "figure=colour"),
    ],
)
def test_a_figure_that_cannot_be_is_bad_input(wrong, named):
    with pytest.raises(ConfigError, match=f"experiment.tables.t.figure.*{named}|{named}"):
        figure_png(table(ranks(), **{**RANKS, "figure": wrong}))
