"""Imports of hundreds of thousands of objects that stay: garbage collection would search them again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_many_objects() -> Iterator[None]:
    """Put garbage collection off until the imports within are done; what is there then it never looks at again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        if was_on:
            gc.enable()
