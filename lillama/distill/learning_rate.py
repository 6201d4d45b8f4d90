"""The learning rate over a run, as a pure function of the step."""

import math

from lillama.config import LearningRate


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, shape: LearningRate) -> float:
    """Return the learning rate of a step.

    Rises linearly over the first ``warmup`` share of the steps, then stays, or falls to zero along a cosine.

    :param step: 0 to steps - 1.

    >>> options = {"peak": 1.0, "warmup": 0.2, "shape": LearningRate.cosine}
    >>> [round(learning_rate(step, 10, **options), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if shape is LearningRate.constant:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
