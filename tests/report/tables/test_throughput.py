import copy

import pytest

from lillama.report.tables.throughput import throughput_table


def spread(value):
    return {"median": value, "lowest": value / 2, "highest": value * 2}


def case(speed, memory=None):
    return {"seconds": spread(1 / speed), "tokens_per_second": spread(speed), "memory": memory}


def figures(speed, weights):
    return {
        "machine": "cpu",
        "dtype": "float32",
        "memory": {"weights": weights, "of": "host", "peak": 3 * 2**30},
        "batch_size": 4,
        "prompt": 128,
        "new_tokens": 32,
        "rounds": 3,
        "forward": {"512": case(speed, 2 * 2**30), "1024": case(speed / 2, 3 * 2**30)},
        "prefill": {"1": {key: value for key, value in case(speed / 3).items() if key != "memory"}},
        "decode": {"1": case(speed / 4, 2**31)},
        "notes": [],
    }


@pytest.fixture
def measured():
    ratio = {"speed": spread(1.25), "memory": 0.75}
    return {
        "dense": figures(400.0, 2**31),
        "compressed": figures(600.0, 2**30),
        "ratios": {
            "forward": {"512": ratio, "1024": ratio},
            "prefill": {"1": {"speed": spread(1.5)}},
            "decode": {"1": ratio},
            "weights": 0.5,
        },
    }


def rows(text):
    """The cells of every line of every table, by its first cell; a variant has one in each table."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|-"):
            first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(first, []).append(rest)
    return found


def test_it_has_a_row_a_variant_and_a_column_a_length(measured):
    found = rows(throughput_table(measured))
    assert found[""][0] == ["weights", "memory at 1024", "s=512", "s=1024"]
    assert found["dense"][0] == ["2 GiB", "3 GiB", "400 (200 to 800)", "200 (100 to 400)"]
    assert found["compressed"][0] == ["1 GiB", "3 GiB", "600 (300 to 1,200)", "300 (150 to 600)"]
    assert found["compressed / dense"][0] == ["0.5", "0.75", "1.25 (0.625 to 2.5)", "1.25 (0.625 to 2.5)"]
    assert found[""][1] == ["memory at 1", "prefill, 1 at once", "decode, 1 at once"]
    assert found["compressed / dense"][1] == ["0.75", "1.5 (0.75 to 3)", "1.25 (0.625 to 2.5)"]


def test_what_does_not_fit_says_so_and_memory_is_compared_where_both_ran(measured):
    measured["dense"]["forward"]["1024"] = "OOM"
    del measured["ratios"]["forward"]["1024"]
    found = rows(throughput_table(measured))
    assert found[""][0][1] == "memory at 512"
    assert found["dense"][0] == ["2 GiB", "2 GiB", "400 (200 to 800)", "OOM"]
    assert found["compressed / dense"][0][2:] == ["1.25 (0.625 to 2.5)", "-"]


def test_a_model_that_did_not_fit_at_all_has_no_weights_to_show(measured):
    dense = measured["dense"]
    for key in ("machine", "dtype", "memory"):
        del dense[key]
    for part in ("forward", "prefill", "decode"):
        dense[part] = dict.fromkeys(dense[part], "OOM")
    measured["ratios"] = {"forward": {}, "prefill": {}, "decode": {}}
    found = rows(throughput_table(measured))
    assert found["dense"] == [["OOM"] * 4, ["OOM"] * 3]
    assert found["compressed"][0][1] == "3 GiB"
    assert found["compressed / dense"] == [["-"] * 4, ["-"] * 3]


def test_one_model_alone_has_no_ratio_and_notes_are_said(measured):
    alone = {"compressed": copy.deepcopy(measured["compressed"])}
    alone["compressed"]["notes"] = ["the text is short"]
    alone["compressed"]["forward"]["1024"] = "not run"
    text = throughput_table(alone)
    assert set(rows(text)) == {"", "compressed"}
    assert rows(text)["compressed"][0][-1] == "not run"
    assert "- compressed: the text is short" in text.splitlines()


def test_memory_that_the_system_does_not_tell_is_left_out(measured):
    measured["dense"]["forward"]["1024"]["memory"] = None
    assert rows(throughput_table(measured))["dense"][0][1] == "-"


def test_parts_that_were_not_asked_for_have_no_table(measured):
    for role in ("dense", "compressed"):
        measured[role] |= {"prefill": {}, "decode": {}}
    assert "prefill" not in throughput_table(measured)
