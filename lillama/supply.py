"""What a run reads and loads, each once, when it is first needed, under a clock of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lillama.config import RunConfig, SpectrumConfig, Stage
from lillama.init import FactorCache, factor_cache
from lillama.init.energy import output_energies
from lillama.model.load import load_model
from lillama.prepare import Inputs, cache_of, kept, prepare_inputs
from lillama.record import Record


class Supply:
    """The inputs and the dense model of a run: a plan from spectra needs them before the start does."""

    def __init__(self, config: RunConfig, record: Record) -> None:
        self.config = config
        self.record = record
        self._inputs: Inputs | None = None
        self._teacher: Any = None
        self._cache = kept(config)  # one for all: it does not evict what this run has used

    def inputs(self) -> Inputs:
        """Tokenizer, tokens, tasks and speech, told to the record.

        :raises ConfigError: for texts, tasks or sounds that are missing, unreadable or too few.
        """
        if self._inputs is None:
            with self.record.stage("data"):
                self._inputs = prepare_inputs(self.config)
            self.record.note_data(self._inputs.data, self._inputs.text)
        return self._inputs

    def take_teacher(self) -> nn.Module:
        """The dense model. It is the caller's from here on, and nothing else holds it."""
        teacher, self._teacher = self._teacher, None
        if teacher is None:
            with self.record.stage("load"):
                teacher = load_model(self.config.model, cache_of(self.config), seed=self.config.seed)
        return teacher

    def factors(self, teacher: nn.Module) -> FactorCache:
        """The model's factorisations in the cache."""
        return factor_cache(self._cache, self.config.model, teacher, seed=self.config.seed)

    def spectra(self, names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """The eigenvalues of the outputs' second moments, for a plan; the model stays for a start that follows."""
        config, data = self.config, self.inputs().data
        assert isinstance(config.strategy, SpectrumConfig) and data is not None
        self.record.begin()  # all that can be checked before a model is loaded has been
        teacher, seen = self.take_teacher(), data.head(config.strategy.tokens)
        known = self.factors(teacher)
        floor, progress = config.strategy.floor, config.progress
        found = output_energies(teacher, names, seen, floor=floor, cache=known, progress=progress)
        self._teacher = teacher if Stage.init in config.stages else None
        return found
