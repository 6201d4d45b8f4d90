"""Take the spectra that a strategy plans by: each strategy's own kind, made once for the plan and the start."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lillama.config import (
    FactorForm,
    InitConfig,
    KfacConfig,
    KfacRanksConfig,
    MeasuredRanksConfig,
    SpectrumConfig,
    StrategyConfig,
)
from lillama.data.calibration import Calibration
from lillama.init.energy import output_energies
from lillama.init.kfac import LossSpectra, loss_spectra
from lillama.init.measured import measured_energies
from lillama.init.spectra import FactorCache


def plan_spectra(
    teacher: nn.Module,
    names: Sequence[str],
    data: Calibration,
    strategy: StrategyConfig,
    init: InitConfig,
    *,
    form: FactorForm,
    cache: FactorCache | None,
    progress: bool,
) -> tuple[Mapping[str, Sequence[float]], LossSpectra | None]:
    """Return the values of the named matrices that a strategy plans by, and where they are of the loss, all of it.

    :param init: the start, whose moments ``strategy=kfac`` shares; of another start it has those of its defaults.
    :param form: how factors will be stored.
    """
    options: dict[str, Any] = {"form": form, "cache": cache, "progress": progress}
    match strategy:
        case SpectrumConfig():
            seen = data.head(strategy.tokens)
            return output_energies(teacher, names, seen, floor=strategy.floor, **options), None
        case MeasuredRanksConfig():
            return measured_energies(teacher, names, data, strategy, **options), None
        case KfacRanksConfig():
            own = init if isinstance(init, KfacConfig) else KfacConfig()
            found = loss_spectra(teacher, names, data, own, **options)
            return found.values, found
    raise TypeError(f"{type(strategy).__name__} plans without spectra")
