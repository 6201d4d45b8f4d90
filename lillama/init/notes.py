"""Keep what a start knows of itself beside its factors."""

from dataclasses import dataclass


@dataclass(slots=True)
class StartNotes:
    """Filled in by a start as it goes.

    ``predicted_loss_rise`` is in nats per token; None of a start that predicts none.
    """

    predicted_loss_rise: float | None = None
