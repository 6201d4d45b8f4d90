"""``logger=none``."""

from collections.abc import Mapping
from typing import Any


class NoLogger:
    """Keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Do nothing."""
