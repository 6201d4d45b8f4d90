"""``strategy=spectrum``: ranks from the spectra of the outputs, at the least lost energy for the parameters."""

from lillama.config import SpectrumConfig, StrategyConfig, Weighting
from lillama.model.targets import ModelShape
from lillama.strategy.pooled import Spectra, pooled_ranks


def plan_spectrum(shape: ModelShape, target: int, config: StrategyConfig, spectra: Spectra) -> dict[str, int]:
    """Choose ranks that lose the least output energy, summed over the matrices, within the target.

    ``weighting=relative`` counts it as a share of a matrix's own, so that every matrix matters alike; ``absolute`` as
    it is, so that large outputs matter more.

    :param spectra: the eigenvalues of each matrix's output second moment.
    :raises ConfigError: where the matrices together are too small for the budget.
    Source: :func:`pooled_ranks` over the loss that Eq. 3 of the paper minimises.
    """
    assert isinstance(config, SpectrumConfig)
    relative = config.weighting is Weighting.relative
    return pooled_ranks(shape, target, config, spectra, why="for spectrum", relative=relative)
