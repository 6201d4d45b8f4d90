"""Whole factorisations through the cache: what it holds is read, the rest is made once and kept."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors.torch import load_file, save
from torch import Tensor, nn

from lillama.algebra.ranks import largest_saving_rank
from lillama.algebra.spectrum import FeatureSpectrum, SvdSpectrum
from lillama.algebra.two_sided import TwoSidedSpectrum
from lillama.config import FactorForm, Weights
from lillama.core.cache import Cache
from lillama.core.provenance import digest
from lillama.model.source import ModelSource
from lillama.model.surgery import matrix

log = logging.getLogger(__name__)
FACTOR_FORMAT = 1
KIND = "factors"
Spectrum = TypeVar("Spectrum", bound=SvdSpectrum | FeatureSpectrum | TwoSidedSpectrum)


@dataclass(frozen=True, slots=True)
class FactorCache:
    """The factorisations of one model in a cache; ``identity`` is what its matrices depend on."""

    cache: Cache
    identity: str


def factor_cache(cache: Cache, source: ModelSource, teacher: Any, *, seed: int) -> FactorCache:
    """Return the factorisations of a loaded model.

    :param source: what it was loaded from. :param teacher: the model. :param seed: of random weights.
    """
    config = source.config
    identity = [source.identity, config.revision, config.task.name, type(teacher).__name__]
    numbers = [str(source.dtype), source.device.type]
    if config.weights is Weights.random:
        weights = [teacher.config.to_json_string(use_diff=False), seed]
    else:
        weights = [getattr(teacher.config, "_commit_hash", None)]  # what a branch of the Hub stood for
    return FactorCache(cache, digest([*identity, *numbers, *weights]))


@dataclass(frozen=True, slots=True)
class Method(Generic[Spectrum]):
    """A way to factorise; ``key`` is its name and all else that its spectra depend on but the model.

    ``compute`` yields (name, spectrum) for the named matrices, ``restore`` makes a spectrum of what a file holds.
    """

    key: Sequence[Any]
    compute: Callable[[Sequence[str]], Iterator[tuple[str, Spectrum]]]
    restore: Callable[[str, Mapping[str, Tensor]], Spectrum]


def kept_columns(teacher: nn.Module, ranks: Mapping[str, int], form: FactorForm = FactorForm.plain) -> dict[str, int]:
    """Count the columns of each matrix's factorisation that are kept: those that may save parameters, or all for more.

    Of a start that is at most as many as plain factors could save by, so that both forms share what is kept, but where
    its rank is above; a plan of pivoted factors asks for all that those may need.
    """
    columns = {}
    for name, rank in ranks.items():
        out_features, in_features = matrix(teacher, name).shape[-2:]
        saving = largest_saving_rank((out_features, in_features), form)
        columns[name] = saving if rank <= saving else min(out_features, in_features)
    return columns


def spectra(
    method: Method[Spectrum], ranks: Mapping[str, int], cache: FactorCache | None
) -> Iterator[tuple[str, Spectrum]]:
    """Yield the spectrum of every matrix, those in the cache first, each with at least the columns of its rank.

    What is missing is made by one process at a time, and kept as soon as it is made: a killed start goes on from there.
    """
    if cache is None:
        yield from method.compute(list(ranks))
        return
    held = _Held(method, ranks, cache)
    missing = yield from held.read(list(ranks))
    if missing:
        with cache.cache.lock(digest(held.key)[:32], "the same factorisations"):
            missing = yield from held.read(missing)
            for name, spectrum in method.compute(missing) if missing else ():
                held.write(name, spectrum)
                yield name, spectrum
    log.info("start: %d of %d factorisations from the cache", len(ranks) - len(missing), len(ranks))


class _Held(Generic[Spectrum]):
    """The entries of one method and model."""

    def __init__(self, method: Method[Spectrum], ranks: Mapping[str, int], cache: FactorCache) -> None:
        self.method = method
        self.ranks = ranks
        self.cache = cache.cache
        self.key = [FACTOR_FORMAT, cache.identity, *method.key]

    def read(self, names: Sequence[str]) -> Generator[tuple[str, Spectrum], None, list[str]]:
        """Yield those that the cache has; return the names of the others."""
        missing = []
        for name in names:
            tensors = self.cache.read(KIND, self._entry(name), _tensors)
            spectrum = None if tensors is None else self.method.restore(name, tensors)
            if spectrum is None or spectrum.columns < self.ranks[name]:
                missing.append(name)
            else:
                yield name, spectrum
        return missing

    def write(self, name: str, spectrum: Spectrum) -> None:
        """Keep a spectrum."""
        self.cache.write(KIND, self._entry(name), save(spectrum.tensors()))

    def _entry(self, name: str) -> str:
        return digest([*self.key, name])[:32]


def _tensors(file: Path) -> dict[str, Tensor]:
    return load_file(file)
