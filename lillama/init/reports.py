"""Log what the calibration tokens did not determine of a start."""

import logging
from collections.abc import Mapping

from torch import Tensor

log = logging.getLogger(__name__)


def report_idle(start: str, name: str, weak: Tensor | None) -> None:
    """Name the experts in none of whose directions there is data: no token was routed to them.

    :param weak: [experts, q], true for directions without data; of other matrices, one dimension less or None.
    """
    if weak is not None and weak.dim() == 2 and bool(weak.all(1).any()):
        idle = weak.all(1).nonzero().flatten().tolist()
        message = "%s start: no calibration token reached experts %s of %s; they start by svd"
        log.warning(message, start, ", ".join(map(str, idle)), name)


def report_weak(start: str, weak: Mapping[str, int]) -> None:
    """Say where there were too few or too similar tokens for the data to choose every direction."""
    worst = max(weak, key=lambda name: weak[name], default=None)
    if worst is not None and weak[worst]:
        message = "%s start: the data says nothing of %d directions, which follow the weights; most in %s (%d)"
        log.info(message, start, sum(weak.values()), worst, weak[worst])
