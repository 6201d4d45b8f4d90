"""``strategy=rank``: one rank for every matrix (Appendix A.12: embedding and head at rank 1024)."""

from lillama.config import RankConfig, StrategyConfig
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape


def plan_rank(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Return the same rank for all matrices that it makes smaller; the budget is what that comes to.

    :raises ConfigError: where it makes none smaller.
    """
    assert isinstance(config, RankConfig)
    ranks = {matrix.name: config.rank for matrix in shape.targets if matrix.saves(config.rank)}
    if not ranks:
        raise ConfigError(f"strategy.rank={config.rank}: saves parameters in no matrix")
    return ranks
