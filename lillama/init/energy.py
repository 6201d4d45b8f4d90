"""Measure the output energy of each direction of a matrix: the spectra of ``init=feature`` without their bases."""

from collections.abc import Sequence

from torch import nn
from tqdm import tqdm

from lillama.algebra.spectrum import FeatureSpectrum
from lillama.config import FactorForm
from lillama.data.calibration import Calibration
from lillama.init.feature import feature_spectra
from lillama.init.spectra import FactorCache


def output_energies(
    teacher: nn.Module,
    names: Sequence[str],
    data: Calibration,
    *,
    floor: float,
    form: FactorForm = FactorForm.plain,
    cache: FactorCache | None = None,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Return the eigenvalues of every named matrix's output second moment, descending, none below zero.

    They are of E[y y^T] for y = W x with the ridge of :func:`feature_spectrum`; of an embedding, of the vectors that it
    gives. Fused experts share one rank, so theirs are summed over the experts that any token reached, or over all
    where none was reached.

    :param data: the calibration tokens, all of which count. :param floor: of their moments.
    :param form: of the factors that are planned.
    :param cache: where ``init=feature`` with the same tokens and floor finds the same spectra.
    """
    ranks = dict.fromkeys(names, 1)
    made = feature_spectra(teacher, ranks, data, floor=floor, cache=cache, progress=progress, form=form)
    bar = tqdm(made, total=len(names), desc="spectra", unit="matrix", disable=not progress)
    found = {name: energies_of(spectrum) for name, spectrum in bar}
    return {name: found[name] for name in names}


def energies_of(spectrum: FeatureSpectrum) -> list[float]:
    """List the eigenvalues of a spectrum, none below zero, of fused experts summed over those that were reached."""
    values = spectrum.values.clamp_min(0)  # rounding leaves some just below
    if values.dim() == 2 and spectrum.weak is not None:
        reached = ~spectrum.weak.all(1)  # the others' values are their weights', on another scale
        values = (values[reached] if bool(reached.any()) else values).sum(0)
    return values.tolist()
