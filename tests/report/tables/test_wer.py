"""The table of word error rates."""

from lillama.report.tables.wer import wer_table

DENSE = {
    "wer": 0.0312,
    "stderr": 0.0021,
    "substitutions": 1200,
    "deletions": 30,
    "insertions": 4,
    "words": 52576,
    "clips": 2620,
    "empty": 0,
    "tokens_per_second": 812.5,
    "real_time_factor": 95.25,
    "normalizer": "english",
    "notes": ["of 2 clips only the first 30 s were heard"],
}


def test_a_row_a_model_with_rates_in_percent():
    small = {**DENSE, "wer": 0.25, "stderr": None, "empty": 3, "notes": []}
    rows = wer_table({"dense": DENSE, "compressed": small}).splitlines()
    assert rows[2].split("|")[1:5] == [" dense      ", " 3.12 ± 0.21 ", " 1,200       ", " 30      "]
    assert " 25.00 " in rows[3]
    assert "±" not in rows[3]
    assert all(number in rows[2] for number in ("52,576", "2,620", "812", "95.2"))


def test_notes_stand_once_below_and_name_whom_they_are_about():
    small = {**DENSE, "empty": 3, "notes": []}
    notes = wer_table({"dense": DENSE, "compressed": small}).split("\n\n")[1].splitlines()
    assert "normaliser" in notes[0]
    assert not notes[0].startswith("- dense")
    assert "- dense: of 2 clips only the first 30 s were heard" in notes
    assert "- compressed: 3 clips were left out: their references hold no word" in notes


def test_one_model_alone():
    assert "compressed" not in wer_table({"dense": DENSE})
