"""Where the factors start: (W, rank, moment) -> factors, for every matrix of a plan."""

from collections.abc import Callable, Iterator, Mapping

from torch import nn
from tqdm import tqdm

from lillama.algebra.factorize import Factors
from lillama.config import FeatureConfig, InitConfig, RandomConfig, SvdConfig
from lillama.data.calibration import Calibration
from lillama.init.feature import feature_start
from lillama.init.random import random_start
from lillama.init.svd import svd_start
from lillama.model.surgery import low_rank_modules
from lillama.runtime import LowRank

Start = Callable[[nn.Module, Mapping[str, int], Calibration | None, InitConfig, bool], Iterator[tuple[str, Factors]]]
STARTS: dict[type, Start] = {
    SvdConfig: svd_start,
    RandomConfig: random_start,
    FeatureConfig: feature_start,
}


def start_factors(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    data: Calibration | None,
    config: InitConfig,
    *,
    progress: bool = False,
) -> dict[str, LowRank]:
    """A low-rank module, by name, for every dense one that the plan replaces a matrix of.

    :param teacher: the dense model. :param ranks: name of a matrix to its rank.
    :param data: calibration tokens; only a start that looks at data needs them.
    :raises LookupError: for a name that is no matrix of the model.
    """
    started = STARTS[type(config)](teacher, ranks, data, config, progress)
    factors = tqdm(started, total=len(ranks), desc="factorise", unit="matrix", disable=not progress)
    return low_rank_modules(teacher, factors, keep_bias=config.keep_bias)
