"""Algorithm 1 with the layers in reverse order (Section 5)."""

from lillama.config import StrategyConfig, TopConfig
from lillama.model.targets import ModelShape
from lillama.strategy.bottom import layer_first, layers


def plan_top(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Ranks by Algorithm 1, layers in decreasing order.

    :raises ConfigError: where no matrix has a candidate rank, or the budget is out of reach.
    """
    assert isinstance(config, TopConfig)
    return layer_first(shape, target, config, order=layers(shape)[::-1])
