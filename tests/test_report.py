from lillama.report import main, table
from lillama.results import RunResult, write_json


def result(status="done", **figures):
    return RunResult(
        status=status, fingerprint="f", name="n", overrides=[], settings={}, provenance={}, **figures
    ).as_dict()


def test_a_folder_without_a_sweep_lists_what_is_there(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "results.json", result(perplexity={"end": 12.345}, tokens=1000))
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / "results.json", result("failed", error="DivergedError: no"))
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "12.35" in out or "12.34" in out
    assert "1,000" in out
    assert "FAILED" in out
    assert "DivergedError: no" in err


def test_a_fine_tuning_has_a_column_only_where_there_was_one(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "results.json", result(perplexity={"end": 12.0}))
    assert main([str(tmp_path)]) == 0
    assert "fine-tuned" not in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / "results.json", result(perplexity={"end": 12.0, "finetuned": 9.75}))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "fine-tuned" in out
    assert "9.75" in out


def test_nothing_to_report_is_bad_input(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_table_is_aligned():
    lines = table(("a", "bb"), [("long", "x"), ("y", "z")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == "a"
