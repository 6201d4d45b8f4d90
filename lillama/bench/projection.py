"""From a measured speed to the time of a budget of tokens."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Projection:
    """Projected time of a budget of tokens.

    ``seconds`` is the measured speed's, ``scale`` times as long where only some of the plan's blocks were measured
    (``partial``). It is a distillation's time alone: neither loading, nor the start, nor any evaluation.
    """

    tokens: int
    seconds: float
    scale: float
    partial: bool
    device: str
    gpu: str | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def project(
    *, tokens: int, tokens_per_second: float, measured_flops: int, all_flops: int, device: str, gpu: str | None
) -> Projection:
    """Return the projection of a measured speed.

    :param measured_flops: what one batch needs with the blocks that were measured; :param all_flops: with all of the
        plan's.
    """
    scale = all_flops / measured_flops
    partial = measured_flops != all_flops
    said = ["projected from some of the plan's blocks, by counted operations"] if partial else []
    said += [] if gpu else ["not measured on a GPU"]
    seconds = tokens / tokens_per_second * scale
    return Projection(tokens, seconds, scale, partial, device, gpu, "; ".join(said))
