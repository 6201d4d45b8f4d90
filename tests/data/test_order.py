import random

from hypothesis import given
from hypothesis import strategies as st

from lillama.config import Order
from lillama.data import order
from lillama.data.order import drawn, ordered


@given(st.integers(0, 60), st.integers(0, 9))
def test_drawing_gives_every_number_once_and_the_same_ones_again(count, seed):
    assert sorted(drawn(count, seed)) == list(range(count))
    assert list(drawn(count, seed)) == list(drawn(count, seed))


def test_an_order_is_that_of_a_shuffled_list_and_of_many_numbers_is_drawn(monkeypatch):
    shuffled = list(range(50))
    random.Random(3).shuffle(shuffled)
    assert ordered(50, Order.shuffled, 3) == shuffled
    assert list(ordered(4, Order.given, 3)) == [0, 1, 2, 3]
    monkeypatch.setattr(order, "SHUFFLED_WHOLE", 49)
    assert sorted(ordered(50, Order.shuffled, 3)) == sorted(shuffled)
    assert list(ordered(50, Order.shuffled, 3)) != list(ordered(50, Order.shuffled, 4))
    assert next(iter(ordered(10**15, Order.shuffled, 0))) < 10**15, "without a list of them"
