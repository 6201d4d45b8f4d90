"""Waiting for something with a deadline, never for a fixed time."""

import time
from collections.abc import Callable

DEADLINE = 240.0  # a machine with other work to do is slow


def wait_for(condition: Callable[[], object], what: str, explain: Callable[[], object] = str) -> None:
    """Look until it is so.

    :raises AssertionError: with what there is to say about it, where it takes too long.
    """
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE:.0f} seconds\n{explain()}"
        time.sleep(0.05)
