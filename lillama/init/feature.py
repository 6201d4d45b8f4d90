"""``init=feature``: the best low-rank map for the outputs on calibration tokens (Eq. 3)."""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lillama.algebra.factorize import Factors, embedding_factors, feature_factors, moment_root, undetermined
from lillama.algebra.moments import Moment
from lillama.config import FeatureConfig, InitConfig
from lillama.data.calibration import Calibration
from lillama.init.moments import input_moments, moment_groups
from lillama.model.surgery import matrix

log = logging.getLogger(__name__)


def feature_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: Calibration | None, config: InitConfig, progress: bool
) -> Iterator[tuple[str, Factors]]:
    """The start of every matrix from the second moment of its inputs in the teacher."""
    assert isinstance(config, FeatureConfig) and data is not None
    weak: dict[str, int] = {}
    for names in moment_groups(teacher, list(ranks)):
        moments = input_moments(teacher, names, data.head(config.tokens), progress=progress)
        roots: dict[int, Tensor] = {}
        for name in names:
            weight, moment = matrix(teacher, name), moments[name]
            if isinstance(moment, Tensor):
                yield name, embedding_factors(weight=weight, counts=moment, rank=ranks[name], floor=config.floor)
            elif isinstance(moment, list):
                yield name, _expert_factors(name, weight, moment, rank=ranks[name], floor=config.floor)
            else:
                root = _shared_root(roots, moment, config.floor) if weight.shape[0] > weight.shape[1] else None
                c = moment.value
                factors = feature_factors(weight=weight, moment=c, rank=ranks[name], floor=config.floor, root=root)
                weak[name] = undetermined(b=factors.b, moment=c, floor=config.floor)
                yield name, factors
    _report_weak(weak)


def _shared_root(roots: dict[int, Tensor], moment: Moment, floor: float) -> Tensor:
    """The root of a moment, once: linears that share an input share it."""
    if id(moment) not in roots:
        roots[id(moment)] = moment_root(moment.value, floor)
    return roots[id(moment)]


def _expert_factors(name: str, weights: Tensor, moments: list[Moment], *, rank: int, floor: float) -> Factors:
    """Each expert from the tokens that were routed to it; one that saw none starts from its weights alone (Eq. 2)."""
    idle = [expert for expert, moment in enumerate(moments) if not moment.count]
    if idle:
        message = "feature start: no calibration token reached experts %s of %s; they start by svd"
        log.warning(message, ", ".join(map(str, idle)), name)
    pairs = [
        feature_factors(weight=weight, moment=moment.value, rank=rank, floor=floor)
        for weight, moment in zip(weights, moments, strict=True)
    ]
    return Factors(torch.stack([pair.a for pair in pairs]), torch.stack([pair.b for pair in pairs]))


def _report_weak(weak: Mapping[str, int]) -> None:
    """Say where there were too few or too similar tokens for the data to choose every direction."""
    worst = max(weak, key=lambda name: weak[name], default=None)
    if worst is not None and weak[worst]:
        message = "feature start: the data says nothing of %d directions, which follow the weights; most in %s (%d)"
        log.info(message, sum(weak.values()), worst, weak[worst])
