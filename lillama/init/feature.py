"""``init=feature``: the best low-rank map for the outputs on calibration tokens (Eq. 3)."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from lillama.algebra.factorize import Factors, feature_factors, moment_root, undetermined
from lillama.algebra.moments import Moment
from lillama.config import FeatureConfig, InitConfig
from lillama.data.tokens import TokenBlocks
from lillama.model.blocks import find_blocks, run_blocks
from lillama.model.surgery import linear

log = logging.getLogger(__name__)
MOMENT_BYTES = 8 * 2**30


def feature_start(
    teacher: nn.Module, ranks: Mapping[str, int], data: TokenBlocks | None, config: InitConfig, progress: bool
) -> Iterator[tuple[str, Factors]]:
    """The start of every matrix from the second moment of its inputs in the teacher."""
    assert isinstance(config, FeatureConfig) and data is not None
    weak: dict[str, int] = {}
    for names in moment_groups(teacher, list(ranks)):
        moments = input_moments(teacher, names, data.head(config.tokens), progress=progress)
        roots: dict[int, Tensor] = {}
        for name in names:
            weight, moment = linear(teacher, name).weight.detach(), moments[name].value
            root = None
            if weight.shape[0] > weight.shape[1]:  # linears that share an input share its root
                key = id(moments[name])
                roots[key] = root = roots[key] if key in roots else moment_root(moment, config.floor)
            factors = feature_factors(weight=weight, moment=moment, rank=ranks[name], floor=config.floor, root=root)
            weak[name] = undetermined(b=factors.b, moment=moment, floor=config.floor)
            yield name, factors
    _report_weak(weak)


def moment_groups(model: nn.Module, names: list[str], limit: int = MOMENT_BYTES) -> list[list[str]]:
    """The names in groups whose moments fit into ``limit`` bytes together: a pass over the tokens is made for each.

    A 7B model's moments for all its matrices would take 65 GB.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = 8 * linear(model, name).in_features ** 2  # float64; sharing makes it less
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def input_moments(
    model: nn.Module, names: list[str], data: TokenBlocks, *, batch_size: int = 4, progress: bool = False
) -> dict[str, Moment]:
    """The second moments of the named linears' inputs; linears that share an input share a moment.

    Padding does not count. Nothing above the last block that holds one of the linears is run.
    """
    collector = _Collector(names)
    hooks = [linear(model, name).register_forward_pre_hook(collector.hook(name)) for name in names]
    device = next(model.parameters()).device
    wanted = _span(model, names)
    try:
        with tqdm(total=data.tokens, desc="moments", unit="tok", disable=not progress) as bar:
            for ids, mask in data.batches(batch_size, device):
                collector.begin(mask)
                run_blocks(model, ids, mask=mask, wanted=wanted, on_block=lambda call: None)
                bar.update(ids.numel() if mask is None else int(mask.sum()))
    finally:
        for hook in hooks:
            hook.remove()
    return collector.moments


def _span(model: nn.Module, names: list[str]) -> range:
    """The blocks from the first to the last that holds one of the named modules."""
    prefix, _ = find_blocks(model)
    indices = [int(name.removeprefix(f"{prefix}.").partition(".")[0]) for name in names]
    return range(min(indices), max(indices) + 1)


class _Collector:
    """Adds each distinct input once a call: query, key and value projections see the same tensor."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.moments: dict[str, Moment] = {}
        self.begin(None)

    def begin(self, mask: Tensor | None) -> None:
        """A new batch begins."""
        self.mask = mask
        self.latest: tuple[Tensor, Moment] | None = None

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def collect(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if self.latest is not None and self.latest[0] is x:
                self.moments.setdefault(name, self.latest[1])
                return
            moment = self.moments.setdefault(name, Moment(x.shape[-1], x.device))
            moment.add(x, None if self.mask is None else self.mask.reshape(x.shape[:-1]))
            self.latest = (x, moment)

        return collect


def _report_weak(weak: Mapping[str, int]) -> None:
    """Say where there were too few or too similar tokens for the data to choose every direction."""
    worst = max(weak, key=lambda name: weak[name])
    if weak[worst]:
        message = "feature start: the data says nothing of %d directions, which follow the weights; most in %s (%d)"
        log.info(message, sum(weak.values()), worst, weak[worst])
