"""The table of scores."""

from lillama.report.tables.zero_shot import zero_shot_table


def score(value, stderr=0.01, **said):
    return {"score": value, "stderr": stderr, "metric": "acc", "version": 1, "documents": 200, **said}


def rows(shown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]


def test_a_row_a_task_with_errors_and_what_is_left():
    dense = {"tasks": {"piqa": score(0.7, metric="acc_norm"), "boolq": score(0.6)}, "mean": score(0.65, 0.007)}
    small = {"tasks": {"piqa": score(0.63, None)}, "recovery": {"piqa": 0.9}}
    found = rows(zero_shot_table({"dense": dense, "compressed": small}))
    assert found[0] == ["task", "metric", "version", "documents", "dense", "compressed", "recovery"]
    assert found[2] == ["piqa", "acc_norm", "1", "200", "70.00 ± 1.00", "63.00", "90.0%"]
    assert found[3] == ["boolq", "acc", "1", "200", "60.00 ± 1.00", "MISSING", "-"]
    assert found[4][0] == "mean"
    assert found[4][4:] == ["65.00 ± 0.70", "MISSING", "-"]


def test_one_model_has_no_recovery():
    shown = zero_shot_table({"dense": {"tasks": {"piqa": score(0.7)}, "mean": score(0.7)}})
    assert rows(shown)[0][-1] == "dense"
