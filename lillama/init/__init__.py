"""Make the start of the factors: (W, rank, moment) -> factors, for every matrix of a plan."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Protocol

from torch import nn
from tqdm import tqdm

from lillama.algebra.pivot import pivoted
from lillama.algebra.spectrum import Factors
from lillama.config import FactorForm, InitConfig
from lillama.config.option import method
from lillama.data.calibration import Calibration
from lillama.init.notes import StartNotes
from lillama.init.spectra import FactorCache, factor_cache
from lillama.model.lowrank import LowRank
from lillama.model.surgery import low_rank_modules, owner

__all__ = ["FactorCache", "Start", "StartNotes", "factor_cache", "start_factors"]


class Start(Protocol):
    """A way to start: the factors of every matrix of a plan by its name, in any order."""

    def __call__(
        self,
        teacher: nn.Module,
        ranks: Mapping[str, int],
        config: InitConfig,
        *,
        data: Calibration | None,
        cache: FactorCache | None,
        progress: bool,
        notes: StartNotes,
    ) -> Iterator[tuple[str, Factors]]: ...


def start_factors(
    teacher: nn.Module,
    ranks: Mapping[str, int],
    data: Calibration | None,
    config: InitConfig,
    *,
    form: FactorForm = FactorForm.plain,
    cache: FactorCache | None = None,
    progress: bool = False,
    notes: StartNotes | None = None,
) -> dict[str, LowRank]:
    """Return a low-rank module, by name, for every dense one that the plan replaces a matrix of.

    :param teacher: the dense model. :param ranks: name of a matrix to its rank.
    :param data: calibration tokens; only a start that looks at data needs them.
    :param form: how the factors are stored; the product of the two does not depend on it.
    :param notes: takes what the start knows beside its factors.
    :param cache: holds factorisations of this model between runs; the factors are the same bits with and without it.
    :raises LookupError: for a name that is no matrix of the model.
    """
    start: Start = method(config)
    started: Any = start(teacher, ranks, config, data=data, cache=cache, progress=progress, notes=notes or StartNotes())
    with closing(started):  # a failure on the way lets other processes go on
        bar = tqdm(started, total=len(ranks), desc="factorise", unit="matrix", disable=not progress)
        factors = ((name, pivoted(pair)) for name, pair in bar) if form is FactorForm.pivoted else bar
        modules = low_rank_modules(teacher, factors, keep_bias=config.keep_bias)
    order = dict.fromkeys(owner(teacher, name)[0] for name in ranks)
    return {name: modules[name] for name in order}
