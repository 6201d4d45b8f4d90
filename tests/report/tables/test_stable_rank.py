"""The table of stable ranks."""

from lillama.report.tables.stable_rank import stable_rank_table


def test_a_row_a_kind_and_three_columns_a_model():
    dense = {"weight": 12.34, "outputs": 2.0, "outputs_centred": None}
    shown = stable_rank_table(
        {"dense": {"tokens": 2048, "mean": {"q": dense}}, "compressed": {"tokens": 1024, "mean": {"v": dense}}}
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    assert rows[2] == ["q", "12.3", "2.0", "-", "-", "-", "-"]
    assert rows[3] == ["v", "-", "-", "-", "12.3", "2.0", "-"]
    assert shown.endswith("- tokens: dense 2,048, compressed 1,024")
