"""``strategy=kfac``: ranks by the rise of the loss that each predicts, in nats, pooled over the whole model."""

from lillama.config import KfacRanksConfig, StrategyConfig
from lillama.model.targets import ModelShape
from lillama.strategy.pooled import Spectra, pooled_ranks


def plan_kfac(shape: ModelShape, target: int, config: StrategyConfig, spectra: Spectra) -> dict[str, int]:
    """Choose ranks that raise the loss least by its Kronecker-factored curvature, within the target.

    A matrix at rank r raises the loss by half the squared singular values of its two-sided factorisation after the
    r-th (:mod:`lillama.algebra.two_sided`). The unit is the same for every matrix: nothing is weighed or searched.

    :param spectra: those squared singular values.
    :raises ConfigError: where the matrices together are too small for the budget.
    """
    assert isinstance(config, KfacRanksConfig)
    return pooled_ranks(shape, target, config, spectra, why="for kfac")
