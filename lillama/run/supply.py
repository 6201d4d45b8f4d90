"""Load a run's inputs and teacher, once each, when they are first needed, and time the loading."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lillama.config import ModelConfig, RunConfig, Stage
from lillama.data.generated import Writer
from lillama.init import FactorCache, factor_cache
from lillama.init.kfac import LossSpectra
from lillama.init.planning import plan_spectra
from lillama.model.load import load_model
from lillama.run.prepare import RunInputs, cache_of, kept, prepare_inputs
from lillama.run.record import Record


class Supply:
    """The inputs and the dense model of a run: a plan from spectra needs them before the start does."""

    def __init__(self, config: RunConfig, record: Record) -> None:
        self.config = config
        self.record = record
        self._inputs: RunInputs | None = None
        self._teacher: Any = None
        self.loss_spectra: LossSpectra | None = None  # what a plan by the loss was made of
        self._cache = kept(config)  # one for all: it does not evict what this run has used

    def inputs(self) -> RunInputs:
        """Tokenizer, tokens, tasks and speech, told to the record.

        :raises ConfigError: for texts, tasks or sounds that are missing, unreadable or too few.
        """
        if self._inputs is None:
            config = self.config
            writer = Writer(config.writer, config.seed, self._writing, config.progress)
            with self.record.stage("data"):
                self._inputs = prepare_inputs(config, writer)
            self.record.note_data(self._inputs.data, self._inputs.text)
        return self._inputs

    def take_teacher(self) -> nn.Module:
        """Return the dense model. It is the caller's from here on, and nothing else holds it."""
        teacher, self._teacher = self._teacher, None
        return self._loaded(self.config.model) if teacher is None else teacher

    def _writing(self) -> nn.Module:
        """Load the model that writes texts; the teacher stays for a start that follows."""
        if Stage.init not in self.config.stages:
            return self._loaded(self.config.writer)
        self._teacher = self.take_teacher()
        return self._teacher

    def _loaded(self, config: ModelConfig) -> nn.Module:
        with self.record.stage("load"):
            return load_model(config, cache_of(self.config), seed=self.config.seed)

    def factors(self, teacher: nn.Module) -> FactorCache:
        """Return the model's factorisations in the cache."""
        return factor_cache(self._cache, self.config.model, teacher, seed=self.config.seed)

    def spectra(self, names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Take the spectra that a strategy plans by; the model stays for a start that follows."""
        config, data = self.config, self.inputs().data
        assert data is not None
        self.record.begin()  # all that can be checked before a model is loaded has been
        teacher = self.take_teacher()
        options: dict[str, Any] = {
            "cache": self.factors(teacher),
            "form": config.factors.form,
            "progress": config.progress,
        }
        found, self.loss_spectra = plan_spectra(teacher, names, data, config.strategy, config.init, **options)
        self._teacher = teacher if Stage.init in config.stages else None
        return found
