"""``strategy=measured``: ranks by what cutting each matrix alone was measured to cost, pooled over the whole model."""

from lillama.config import MeasuredRanksConfig, StrategyConfig
from lillama.model.targets import ModelShape
from lillama.strategy.pooled import Spectra, pooled_ranks


def plan_measured(shape: ModelShape, target: int, config: StrategyConfig, spectra: Spectra) -> dict[str, int]:
    """Choose ranks that cost the least KL to the dense model, within the target.

    :param spectra: output spectra, each scaled so that its tail at the probed rank is the KL that was measured there.
    :raises ConfigError: where the matrices together are too small for the budget.
    """
    assert isinstance(config, MeasuredRanksConfig)
    return pooled_ranks(shape, target, config, spectra, why="for measured")
