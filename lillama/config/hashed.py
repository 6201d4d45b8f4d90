"""Mark the fields of a configuration that no result depends on: the fingerprint of a run leaves them out."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

KEY = "fingerprint"  # in a field's metadata
LEFT_OUT, CONTENT = "left out", "content"


def left_out(default: Any = None, *, factory: Callable[[], Any] | None = None) -> Any:
    """Declare a field that changes no figure, but to rounding: ``progress: bool = left_out(True)``."""
    if factory is not None:
        return field(default_factory=factory, metadata={KEY: LEFT_OUT})
    return field(default=default, metadata={KEY: LEFT_OUT})


def by_content(default: Any = None) -> Any:
    """Declare a field that names something whose content counts, wherever it lies: ``path: str | None = by_content()``.

    The fingerprint has null there, and a hash of the content beside.
    """
    return field(default=default, metadata={KEY: CONTENT})
