from lillama.report.tables.markdown import table


def test_a_table_is_aligned():
    lines = table(("a", "bb"), [("long", "x"), ("y", "z")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == "a"
