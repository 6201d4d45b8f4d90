"""Algorithm 1 from the middle of the model outward: both ends stay dense longest."""

from lillama.config import MiddleOutConfig, StrategyConfig
from lillama.model.targets import ModelShape
from lillama.strategy.bottom import layer_first, layers


def plan_middle_out(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Ranks by Algorithm 1, the layers nearest to the middle first; of two equally near, the lower one first.

    The middle is that of the layers that hold targets, in the order in which they run: of five 2, 1, 3, 0, 4, of four
    1, 2, 0, 3. In an encoder-decoder with both sides in scope it lies where the decoder begins.

    :raises ConfigError: where no matrix has a candidate rank, or the budget is out of reach.
    """
    assert isinstance(config, MiddleOutConfig)
    return layer_first(shape, target, config, order=middle_out(layers(shape)))


def middle_out(ascending: list[int]) -> list[int]:
    """Numbers in ascending order as ``middle_out`` takes them."""
    last = len(ascending) - 1
    return [ascending[place] for place in sorted(range(last + 1), key=lambda place: (abs(2 * place - last), place))]
