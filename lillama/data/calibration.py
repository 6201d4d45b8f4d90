"""Define what every kind of calibration data offers: a token count, a hash, batches."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from lillama.data.texts import RowCounts
from lillama.model.inputs import Batch


class Calibration(Protocol):
    """Examples in a fixed order: blocks of text, or sound with its transcripts."""

    def __len__(self) -> int:
        """Count the examples."""

    @property
    def tokens(self) -> int:
        """Count the real tokens."""

    @property
    def counts(self) -> RowCounts:
        """Count the skipped rows and the replaced characters."""

    @property
    def hash(self) -> str:
        """Hash the examples."""

    def head(self, tokens: int) -> "Calibration":
        """Return the first examples, as many as it takes to hold at least this many tokens, or all."""

    def batches(self, size: int, device: torch.device | str) -> Iterator[Batch]:
        """Return the examples in batches of at most ``size``."""


def described(data: Calibration) -> dict[str, Any]:
    """Say in plain values what calibration data is, for a result."""
    return {"hash": data.hash, "tokens": data.tokens, **data.counts.as_dict()}
