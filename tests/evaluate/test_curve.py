import csv

from lillama.evaluate.curve import Curve


def test_every_point_is_on_disk_as_soon_as_it_is_measured(tmp_path):
    values = iter([9.5, 7.25])
    curve = Curve(tmp_path, lambda: next(values), every=100)
    for tokens, value in ((0, 9.5), (128, 7.25)):
        assert curve.add(tokens) == value
        with (tmp_path / "curve.csv").open() as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["tokens", "perplexity"]
        assert rows[-1] == [str(tokens), str(value)]
    curve.draw(5.0, "title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_points_are_due_once_an_interval(tmp_path):
    curve = Curve(tmp_path, lambda: 1.0, every=100)
    curve.add(0)
    due = []
    for tokens in range(30, 400, 30):
        if curve.due(tokens):
            due.append(tokens)
            curve.add(tokens)
    assert due == [120, 210, 300]
    never = Curve(tmp_path, lambda: 1.0, every=0)
    assert not never.due(10**9)
