"""Algorithm 1 from both ends of the model towards its middle, which stays dense longest."""

from lillama.config import MixedConfig, StrategyConfig
from lillama.model.targets import ModelShape
from lillama.strategy.bottom import layer_first, layers


def plan_mixed(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Ranks by Algorithm 1, bottom and top layers in turn: the lowest, the highest, the second lowest, and so on.

    The layers are those that hold targets, in the order in which they run: of five 0, 4, 1, 3, 2. With the embedding
    and the head among the targets, these two come first.

    :raises ConfigError: where no matrix has a candidate rank, or the budget is out of reach.
    """
    assert isinstance(config, MixedConfig)
    return layer_first(shape, target, config, order=from_both_ends(layers(shape)))


def from_both_ends(ascending: list[int]) -> list[int]:
    """Numbers in ascending order as ``mixed`` takes them."""
    last = len(ascending) - 1
    return [ascending[place] for place in sorted(range(last + 1), key=lambda place: (min(place, last - place), place))]
