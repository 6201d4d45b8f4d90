"""The table of perplexities by kind of text."""

from lillama.report.tables.domains import domains_table


def test_a_row_a_text_and_a_column_a_model():
    shown = domains_table(
        {
            "dense": {"code": {"perplexity": 1234.5, "bits_per_byte": 0.5, "tokens": 9}},
            "compressed": {"prose": {"perplexity": 20.0, "bits_per_byte": 1.25, "tokens": 9}},
        }
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]
    assert rows[0] == ["text", "dense", "compressed"]
    assert rows[2:] == [["code", "1,234.50 (0.500)", "MISSING"], ["prose", "MISSING", "20.00 (1.250)"]]
