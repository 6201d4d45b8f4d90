"""Where the factors start: (W, rank, moment) -> factors, for every matrix of a plan."""

from collections.abc import Callable, Iterator, Mapping

from torch import nn
from tqdm import tqdm

from lillama.algebra.factorize import Factors
from lillama.config import FeatureConfig, InitConfig, RandomConfig, SvdConfig
from lillama.data.tokens import TokenBlocks
from lillama.init.feature import feature_start
from lillama.init.random import random_start
from lillama.init.svd import svd_start
from lillama.model.linear import LowRankLinear
from lillama.model.surgery import linear, low_rank

Start = Callable[[nn.Module, Mapping[str, int], TokenBlocks | None, InitConfig, bool], Iterator[tuple[str, Factors]]]
STARTS: dict[type, Start] = {
    SvdConfig: svd_start,
    RandomConfig: random_start,
    FeatureConfig: feature_start,
}


def start_factors(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    data: TokenBlocks | None,
    config: InitConfig,
    *,
    progress: bool = False,
) -> dict[str, LowRankLinear]:
    """A low-rank linear for every matrix of a plan.

    :param teacher: the dense model. :param ranks: module name to rank.
    :param data: calibration tokens; only a start that looks at data needs them.
    :raises LookupError: for a name that is no linear of the model.
    """
    started = STARTS[type(config)](teacher, ranks, data, config, progress)
    modules = {}
    for name, factors in tqdm(started, total=len(ranks), desc="factorise", unit="matrix", disable=not progress):
        modules[name] = low_rank(linear(teacher, name), factors, keep_bias=config.keep_bias)
    return modules
