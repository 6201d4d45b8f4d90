"""Load a run's inputs and teacher, once each, when they are first needed, and time the loading."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lillama.config import Stage
from lillama.data.generated import Writer
from lillama.init import FactorCache, factor_cache
from lillama.init.kfac import LossSpectra
from lillama.init.planning import plan_spectra
from lillama.model.source import ModelSource
from lillama.run.checks import READ_TEXT
from lillama.run.inputs import Inputs
from lillama.run.record import Record
from lillama.run.run import Run


class Supply:
    """The inputs and the dense model of a run: a plan from spectra needs them before the start does."""

    def __init__(self, run: Run, record: Record) -> None:
        self._run = run
        self._record = record
        self._teacher: Any = None
        self.inputs = Inputs(run, Writer(run.writer, run.config.seed, self._writing, run.config.progress))
        self.loss_spectra: LossSpectra | None = None  # what a plan by the loss was made of

    def read_inputs(self) -> None:
        """Read the inputs and tell the record of them; a second call finds them read.

        :raises ConfigError: for texts, tasks or sounds that are missing, unreadable or too few.
        """
        with self._record.stage("data"):
            self.inputs.read()
        if self._run.config.calibrates:
            self._record.note_data(self.inputs.calibration)
        if self._run.stages & READ_TEXT:
            self._record.note_text(self.inputs.text)

    def take_teacher(self) -> nn.Module:
        """Return the dense model. It is the caller's from here on, and nothing else holds it."""
        teacher, self._teacher = self._teacher, None
        return self.load(self._run.model) if teacher is None else teacher

    def load(self, source: ModelSource) -> nn.Module:
        """Load a model, on the clock of the stage ``load``."""
        with self._record.stage("load"):
            return source.load(seed=self._run.config.seed)

    def factors(self, teacher: nn.Module) -> FactorCache:
        """Return the model's factorisations in the cache."""
        return factor_cache(self._run.cache, self._run.model, teacher, seed=self._run.config.seed)

    def spectra(self, names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Take the spectra that a strategy plans by; the model stays for a start that follows."""
        self.read_inputs()
        config, data = self._run.config, self.inputs.calibration
        self._record.begin()  # all that can be checked before a model is loaded has been
        teacher = self.take_teacher()
        options: dict[str, Any] = {
            "cache": self.factors(teacher),
            "form": config.factors.form,
            "progress": config.progress,
        }
        found, self.loss_spectra = plan_spectra(teacher, names, data, config.strategy, config.init, **options)
        self._teacher = teacher if Stage.init in self._run.stages else None
        return found

    def _writing(self) -> nn.Module:
        """Load the model that writes texts; the teacher stays for a start that follows."""
        if Stage.init not in self._run.stages:
            return self.load(self._run.writer)
        self._teacher = self.take_teacher()
        return self._teacher
