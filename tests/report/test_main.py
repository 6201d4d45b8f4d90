from lillama.core.results import RunResult, write_json
from lillama.report.__main__ import main


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


def figures(text):
    mean = {"tokens": 1, "ended": 0.0, "repetition": None, "distinct_1": 1.0, "distinct_2": None, "distinct_3": None}
    return {"texts": [{"prompt": "Rain", "seed": 0, "text": text}], "mean": mean}


def test_texts_stand_side_by_side_and_one_dense_model_stands_once(tmp_path, capsys):
    for cut, said in ((0.2, "falls"), (0.4, "rain rain")):
        (tmp_path / str(cut)).mkdir()
        own = result(measured={"samples": {"dense": figures("fell"), "compressed": figures(said)}})
        own["overrides"] = [f"strategy.reduction={cut}"]
        write_json(tmp_path / str(cut) / "results.json", own)
    assert main([str(tmp_path), "--samples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0] == ["seed", "dense", "0.2", "0.4"]
    assert rows[2] == ["0", "fell", "falls", "rain rain"]


def test_a_sweep_without_texts_says_so(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "results.json", result())
    assert main([str(tmp_path), "--samples"]) == 2
    assert "samples" in capsys.readouterr().err
