"""Seeded orders."""

import random
from collections.abc import Iterator, Sequence

from lillama.config import Order

SHUFFLED_WHOLE = 2**20  # rows up to which their numbers are shuffled as a list


def ordered(count: int, order: Order, seed: int) -> Sequence[int] | Iterator[int]:
    """Give the numbers from 0 to ``count`` - 1, shuffled or as they are."""
    if order is not Order.shuffled:
        return range(count)
    if count > SHUFFLED_WHOLE:
        return drawn(count, seed)
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    return numbers


def drawn(count: int, seed: int) -> Iterator[int]:
    """Draw the numbers from 0 to ``count`` - 1 without putting back, in memory for those drawn (Fisher and Yates)."""
    moved: dict[int, int] = {}
    source = random.Random(seed)
    for last in range(count - 1, -1, -1):
        place = source.randrange(last + 1)
        yield moved.get(place, place)
        held = moved.pop(last, last)
        if place != last:
            moved[place] = held
