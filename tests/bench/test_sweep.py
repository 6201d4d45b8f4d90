"""The tables of benchmark sweeps: every cell, run or not, and the paper's times in a column of their own."""

from pathlib import Path

import pytest

from lillama.bench.__main__ import main
from lillama.bench.sweep import bench_table, growth, paper_minutes
from lillama.report.cells import Cell, cells

TINY = (
    *("strategy.k=8", "strategy.m=4", "data.seq_len=16", "distill.batch_size=2"),
    *("bench.rounds=1", "bench.warmup=0", "model.device=cpu"),
)


def cell(name, *, status="done", seconds=2.0, model="x", **overrides):
    spread = {"median": seconds, "lowest": seconds, "highest": seconds}
    bench = {"seconds": {"engine": spread}, "device": "cpu", "gpu": None}
    result = {"status": status, "seconds": {"bench": 1.0}, "settings": {"model": {"name": model}}, "bench": bench}
    return Cell(Path(name), {key: str(value) for key, value in overrides.items()}, result)


@pytest.mark.long
def test_the_gpu_benchmark_runs_dry_for_every_kind_of_model(cli, tmp_path, capsys):
    words = ("experiments=bench/gpu", "model=tiny_random,tiny_mixtral,tiny_mamba", f"hydra.sweep.dir={tmp_path}")
    status, out, err = cli(*words, *TINY)
    assert status == 0, err
    found = cells(tmp_path)
    assert len(found) == 6
    for one in found:
        assert one.status == "done", one.result
        assert one.result["bench"]["dtype"] == "bfloat16"
        assert one.result["bench"]["efficiency"]["median"] > 0
        assert (one.folder / "bench.png").is_file()
    assert main([str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert out.count("not measured on a GPU") == 6
    assert (tmp_path / "bench.png").stat().st_size > 0
    (found[0].folder / "results.json").unlink()
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.count("MISSING") == 1
    assert found[0].folder.name in err


def test_a_folder_without_results_is_bad_input(tmp_path):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2


def test_the_papers_minutes_are_the_printed_ones_and_name_their_hardware():
    assert paper_minutes() == {
        "Phi-2 3B": "25 (bottom, one A100)",
        "Mistral-v0.1 7B": "26 (bottom, one A100)",
        "Phi-3 14B": "30 (bottom, one A100)",
        "Mixtral-8x7B-v0.1 47B": "47 (bottom, one A100)",
    }
    assert paper_minutes("uniform")["Mixtral-8x7B-v0.1 47B"] == "OOM (uniform, one A100)"


def test_the_papers_minutes_never_stand_for_a_cell_that_was_not_measured():
    shown = bench_table([cell("a", status="failed", model="phi2", n=1), cell("b", model="y", n=2)], {"Phi-2 3B": "25"})
    failed = next(line for line in shown.splitlines() if "FAILED" in line)
    figures = [word.strip() for word in failed.strip("|").split("|")]
    assert set(figures[2:-1]) == {"-"}
    assert figures[-1] == "25"


def test_time_grows_by_an_exponent_for_each_key_that_varies_alone():
    found = [cell(f"{w}-{n}", width=w, blocks=n, seconds=w**2 * n) for w in (2, 4, 8) for n in (1, 3)]
    exponents = growth(found)
    assert exponents["width"]["median"] == pytest.approx(2)
    assert exponents["blocks"]["lowest"] == exponents["blocks"]["highest"] == pytest.approx(1)
    assert growth([cell("a", kind="one"), cell("b", kind="two")]) == {}
    assert growth([cell("a", width=1), cell("b", width=2, status="failed")]) == {}


def test_the_second_cell_of_a_sweep_stands_beside_the_first(tmp_path):
    found = [cell("a", k=1), cell("b", k=2)]
    for one, seconds in zip(found, (10.0, 4.0), strict=True):
        one.result.update(bench={}, seconds={"init": seconds})
    assert "0.4" in bench_table(found, {}).splitlines()[-1]
