"""Where the factors start: (W, rank, moment) -> factors, for every matrix of a plan."""

from collections.abc import Callable, Mapping

import torch
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

Start = Callable[[str, torch.Tensor, int], Factors]
STARTS: dict[type, Callable[[nn.Module, Mapping[str, int], TokenBlocks, InitConfig, bool], Start]] = {
    SvdConfig: svd_start,
    RandomConfig: random_start,
    FeatureConfig: feature_start,
}


def start_factors(
    teacher: nn.Module, ranks: Mapping[str, int], data: TokenBlocks, config: InitConfig, *, progress: bool = False
) -> dict[str, LowRankLinear]:
    """A low-rank linear for every matrix of a plan.

    :param teacher: the dense model. :param ranks: module name to rank. :param data: calibration tokens.
    :raises LookupError: for a name that is no linear of the model.
    """
    start = STARTS[type(config)](teacher, ranks, data, config, progress)
    modules = {}
    for name, rank in tqdm(ranks.items(), desc="factorise", unit="matrix", disable=not progress):
        dense = linear(teacher, name)
        modules[name] = low_rank(dense, start(name, dense.weight.detach(), rank), keep_bias=config.keep_bias)
    return modules
