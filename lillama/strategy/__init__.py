"""Plan the ranks of matrices: (model shape, budget) -> RankPlan.

No weights, so a plan takes milliseconds; what ``spectrum`` needs of them is handed to it.
"""

from collections.abc import Callable
from dataclasses import replace

from lillama.config import KfacRanksConfig, PlanFileConfig, RankConfig, StrategyConfig
from lillama.config.option import method
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape
from lillama.strategy.plan import RankPlan
from lillama.strategy.pooled import Spectra

__all__ = ["Spectra", "make_plan", "parse_count", "takes_table", "target_parameters"]

Planner = Callable[[ModelShape, int, StrategyConfig], dict[str, int]]
PlannerFromSpectra = Callable[[ModelShape, int, StrategyConfig, Spectra], dict[str, int]]
OWN_REQUEST = (RankConfig, PlanFileConfig)  # what they give is what was asked for


def make_plan(shape: ModelShape, config: StrategyConfig, spectra: Spectra | None = None) -> RankPlan:
    """Return the plan of a strategy for a model.

    :param spectra: what a strategy with ``from_spectra`` asks for the eigenvalues of outputs; others need none.
    :raises ConfigError: where the request is illegal or out of reach; the message names the largest reduction.

    >>> from lillama.config import UniformConfig
    >>> from lillama.model.targets import Target
    >>> matrices = tuple(Target(f"blocks.{block}.mlp", block, (64, 64)) for block in range(2))
    >>> plan = make_plan(ModelShape(parameters=10_000, blocks=2, targets=matrices), UniformConfig(reduction=0.4))
    >>> plan.ranks, plan.parameters
    ({'blocks.0.mlp': 16, 'blocks.1.mlp': 16}, 5904)
    """
    if isinstance(config, PlanFileConfig):  # made with whatever targets; they need not be named again
        shape = replace(shape, targets=shape.every or shape.targets)
    if takes_table(config):
        shape = shape.with_table()
    shape = shape.within(config.scope)
    if not shape.targets and shape.every:
        raise ConfigError("model.targets: include and exclude leave no matrix that could be compressed")
    if not shape.targets:
        raise ConfigError("model: its blocks hold no linear that could be compressed")
    target = target_parameters(shape, config)
    if config.from_spectra:
        assert spectra is not None
        by_spectra: PlannerFromSpectra = method(config)
        ranks = by_spectra(shape, target, config, spectra)
    else:
        by_shapes: Planner = method(config)
        ranks = by_shapes(shape, target, config)
    return RankPlan.of(shape, ranks, None if isinstance(config, OWN_REQUEST) else 1 - target / shape.parameters)


def takes_table(config: StrategyConfig) -> bool:
    """Tell a strategy that may cut the table which a model both embeds and predicts with."""
    return isinstance(config, KfacRanksConfig) and config.tied_embedding


def target_parameters(shape: ModelShape, config: StrategyConfig) -> int:
    """Return the parameter count that a compressed model may have at most: S of Algorithm 1."""
    if config.parameters is None:
        return int(shape.parameters * (1 - config.reduction))
    count = parse_count(config.parameters)
    if not 0 < count < shape.parameters:
        legal = f"must lie between 0 and the model's {shape.parameters:,} parameters"
        raise ConfigError(f"strategy.parameters={config.parameters}: {legal}")
    return count


def parse_count(text: str) -> int:
    """Return a parameter count written as people write it: 1.7B, 350M, 12K or a plain number.

    >>> parse_count("1.727B"), parse_count("110_000_000")
    (1727000000, 110000000)
    """
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    digits = text if scale == 1 else text[:-1]
    try:
        return round(float(digits.replace("_", "")) * scale)
    except (ValueError, OverflowError):
        raise ConfigError(f"strategy.parameters={text}: must be a number such as 1.7B, 350M or 110000000") from None
