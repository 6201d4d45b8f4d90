import csv

import pytest

from lillama.evaluate.curve import Curve
from tests.model.test_student import student_of


@pytest.fixture
def student(tiny_model):
    return student_of(tiny_model, {"model.layers.0.mlp.up_proj": 4})


def test_every_point_is_on_disk_as_soon_as_it_is_measured(student, tmp_path):
    values = iter([5.0, 9.5, 7.25])
    told = []
    curve = Curve(tmp_path, measure=lambda model: next(values), on_point=lambda *point: told.append(point))
    curve.add_dense(student.teacher)
    for tokens, value in ((0, 9.5), (128, 7.25)):
        curve.add(student, tokens)
        curve.add(student, tokens)  # the last point again: nothing is measured
        with (tmp_path / "curve.csv").open() as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["tokens", "perplexity"]
        assert rows[-1] == [str(tokens), str(value)]
    assert told == curve.points == [(0, 9.5), (128, 7.25)]
    assert curve.figures == {"dense": 5.0, "start": 9.5, "end": 7.25}
    curve.draw("title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_student_is_measured_in_place(student, tmp_path):
    measured = []
    curve = Curve(tmp_path, measure=lambda model: measured.append(model.model.layers[0]) or 1.0)
    curve.add_dense(student.teacher)
    curve.add(student, 0)
    assert measured[0] is student.teacher.model.layers[0]
    assert measured[1] is student.blocks[0]


def test_points_are_due_once_an_interval(student, tmp_path):
    curve = Curve(tmp_path, measure=lambda model: 1.0, every=100)
    curve.add(student, 0)
    for tokens in range(30, 400, 30):
        curve.add_if_due(student, tokens)
    assert [tokens for tokens, _ in curve.points] == [0, 120, 210, 300]
    never = Curve(tmp_path, measure=lambda model: 1.0, every=0)
    never.add_if_due(student, 10**9)
    assert never.points == []


def test_a_run_without_perplexity_has_no_curve(student, tmp_path):
    curve = Curve(tmp_path, measure=None, every=1)
    curve.add_dense(student.teacher)
    curve.add(student, 0)
    curve.add_if_due(student, 10)
    curve.draw("title")
    assert curve.figures == {}
    assert not list(tmp_path.iterdir())
