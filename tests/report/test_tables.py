"""A table's cells beside the paper's: as markdown, as CSV, as LaTeX, and what is said where some are not there."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lillama.report.__main__ import main
from lillama.report.cells import Cell
from lillama.report.entries import Table, make_table
from lillama.report.frame import as_csv, frame
from lillama.report.latex import as_latex, escaped
from lillama.report.layout import TableConfig
from lillama.report.markdown import as_markdown
from tests.report.sweeps import finished, texts, write_cell, zero_shot

NAME = "table11_ratios"
GIVEN = {"model": "phi2", "reduction": "0.2"}
HOSTILE = r"50% of a_b & {c} #1 $x$ ~ ^ \input{/x} <b>|"


def where(tmp_path: Path) -> list[str]:
    return ["--outputs", str(tmp_path), "--results", str(tmp_path / "none")]


@pytest.fixture
def half(tmp_path):
    """Three cells of the small scale: one done, one failed, one never begun."""
    cells = {cut: ["model=smollm2_135m", f"strategy.reduction={cut}"] for cut in ("0.2", "0.25")}
    scores = {"zero_shot": {"dense": zero_shot(0.5), "compressed": zero_shot(0.4321)}}
    write_cell(tmp_path, f"{NAME}/small", cells["0.2"], measured=scores)
    write_cell(tmp_path, f"{NAME}/small", cells["0.25"], status="failed", error="DivergedError: no\nnumber")
    return tmp_path


def rows_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]


def test_a_half_finished_sweep_says_missing_where_it_is(half, capsys):
    assert main([NAME, "--scale", "small", *where(half)]) == 1
    out, err = capsys.readouterr()
    found = {row[1]: row for row in rows_of(out) if row[0] == "SmolLM2-135M" and row[2] == "here"}
    assert set(found["0%"][3:-1]) == {"50.00 ± 1.23"}
    assert set(found["20%"][3:-1]) == {"43.21 ± 1.23"}
    assert set(found["25%"][3:]) == {"FAILED"}
    assert set(found["30%"][3:]) == {"MISSING"}
    assert "strategy.reduction=0.25: FAILED: DivergedError: no number" in err
    assert "strategy.reduction=0.3: MISSING" in err
    assert "strategy.reduction=0.2:" not in err
    assert f"python run.py experiments=small/{NAME}" in err


def test_rows_that_only_the_paper_has_come_after_and_say_so(half, capsys):
    main([NAME, "--scale", "small", *where(half)])
    marks = [row[2] for row in rows_of(capsys.readouterr().out) if len(row) > 10]
    assert marks.count("paper only") == 12
    assert "here" not in marks[marks.index("paper only") :]


def test_a_finished_table_exits_with_0(tmp_path, capsys):
    for cut in ("0.2", "0.25", "0.3"):
        scores = {"zero_shot": {"dense": zero_shot(0.5), "compressed": zero_shot(0.4)}}
        made = {"parameters": {"dense": 10, "compressed": 8}, "reduction": {"realised": 0.2}}
        figures = {"measured": scores, "perplexity": {"dense": 1.5, "end": 2.5}, **made}
        write_cell(tmp_path, f"{NAME}/small", ["model=smollm2_135m", f"strategy.reduction={cut}"], **figures)
    assert main([NAME, "--scale", "small", *where(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "MISSING" not in out
    assert err == ""
    assert "revision 0123456, 2025-01-02: model=smollm2_135m strategy.reduction=0.2; " in out


def test_one_table_of_several_by_its_name(half, capsys):
    main(["table11_perplexity", "--scale", "small", *where(half)])
    out = capsys.readouterr().out
    assert "table11_perplexity" in out
    assert "TruQA" not in out


@pytest.mark.parametrize("words", [["nowhere"], [NAME, "--scale", "huge"], [NAME, "--scale", "shapes"], []])
def test_a_bad_name_is_told_in_one_line(words, tmp_path, capsys):
    assert main([*words, *where(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err)


def test_the_csv_has_a_line_for_every_cell(half, capsys):
    assert main([NAME, "--scale", "small", "--format", "csv", *where(half)]) == 1
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    own = [line for line in lines if line["Model"] == "SmolLM2-135M" and line["table"] == NAME]
    assert len(own) == 40
    measured = next(line for line in own if (line["Reduction"], line["column"]) == ("20%", "TruQA"))
    assert float(measured["measured"]) == pytest.approx(43.21)
    assert float(measured["stderr"]) == pytest.approx(1.23)
    assert measured["revision"] == "0123456789abcdef"
    assert measured["machine"] == "CPU, 2 threads"
    missing = next(line for line in own if (line["Reduction"], line["column"]) == ("30%", "TruQA"))
    assert (missing["status"], missing["measured"], missing["started"]) == ("MISSING", "", "")
    printed = next(line for line in lines if (line["Model"], line["Reduction"]) == ("Phi-2 3B", "20%"))
    assert (printed["paper"], printed["status"]) == ("46.04", "paper only")


def test_texts_of_an_experiment_stand_side_by_side(tmp_path, capsys):
    found = {"samples": {"dense": texts("fell"), "compressed": texts("falls")}}
    write_cell(tmp_path, f"{NAME}/small", ["model=smollm2_135m", "strategy.reduction=0.2"], measured=found)
    assert main([NAME, "--scale", "small", "--samples", *where(tmp_path)]) == 1
    assert ["0", "fell", "falls"] in rows_of(capsys.readouterr().out)
    assert main([NAME, "--scale", "paper", "--samples", *where(tmp_path)]) == 2


def small_table(**settings) -> Table:
    """A cell with a printed figure, a speed with its spread, and a cell that did not fit the device."""
    speed = {"median": 7000.0, "lowest": 6900.0, "highest": 7100.0}
    done = {"zero_shot": {"compressed": zero_shot(0.5838)}, "throughput": {"compressed": {"speed": speed}}}
    cells = [
        Cell(Path("a"), {"loss": "teacher"}, finished([], measured=done), GIVEN),
        Cell(Path("b"), {"loss": "student"}, finished([], status="failed", error="DeviceMemoryError: lower it"), GIVEN),
    ]
    columns = {"Teacher": {"loss": "teacher"}, "Student": {"loss": "student"}}
    given = {"rows": {"Model": "{model}"}, "columns": columns, "value": "zero_shot.mean.score | percent"}
    config = TableConfig(title=HOSTILE, paper=["table08_losses.csv"], **{**given, **settings})
    return make_table("t", config, "paper", cells)


def test_a_narrow_table_has_the_paper_in_brackets_and_oom_in_words():
    rows = rows_of(as_markdown(small_table()))
    assert rows[2] == ["Phi-2 3B", "58.38 ± 1.23 [57.38]", "OOM [56.44]"]
    assert rows[3][0] == "Phi-3 14B (paper only)"


def test_a_spread_stands_in_brackets_and_in_columns_of_the_csv():
    table = small_table(columns={"Speed": "throughput.speed"}, value=None)
    assert rows_of(as_markdown(table))[2] == ["Phi-2 3B", "7,000 (6,900 to 7,100)"]
    line = next(csv.DictReader(io.StringIO(as_csv([table]))))
    assert (line["measured"], line["low"], line["high"]) == ("7000.0", "6900.0", "7100.0")


def test_a_frame_has_a_row_a_cell_of_all_tables():
    one, other = small_table(), small_table(columns={"Speed": "throughput.speed"}, value=None)
    found = frame([one, other])
    assert len(found) == len(one.entries) + len(other.entries)
    of_model = found[found["Model"] == "Phi-2 3B"].set_index("column")
    assert of_model.loc["Teacher", "measured"] == pytest.approx(58.38, abs=0.01)
    assert of_model.loc["Student", "measured"] is None
    assert of_model.loc["Student", "status"] == "OOM"
    assert next(csv.reader(io.StringIO(as_csv([one, other])))) == list(found.columns)


def test_nothing_in_latex_is_a_command_that_was_not_meant():
    text = escaped(HOSTILE + " [1]")
    assert not re.search(r"(?<!\\)[&%#_]", text)
    assert r"\input" not in text
    assert "|" not in text
    assert "\n" not in escaped("two\n\nlines")


def test_latex_has_as_many_cells_in_every_line():
    lines = [line for line in as_latex(small_table()).splitlines() if line.endswith(r" \\")]
    assert {line.count(" & ") for line in lines} == {2}
    assert len(lines) == 1 + len(small_table().by_row())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(tmp_path):
    body = as_latex(small_table())
    page = rf"\documentclass{{article}}\usepackage[utf8]{{inputenc}}\usepackage{{booktabs}}\begin{{document}}{body}"
    (tmp_path / "t.tex").write_text(page + r"\end{document}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
