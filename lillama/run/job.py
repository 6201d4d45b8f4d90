"""A run under way in one process."""

from dataclasses import dataclass

from torch import nn

from lillama.core.preempt import Preemption
from lillama.distill.parallel import Team
from lillama.evaluate.perplexity import text_perplexity
from lillama.run.record import Record
from lillama.run.resume import Resume
from lillama.run.run import Run
from lillama.run.supply import Supply


@dataclass(frozen=True, slots=True)
class Job:
    """Hold what a run is asked for, what it reads, where it is told, and what it goes on from."""

    run: Run
    record: Record
    supply: Supply
    team: Team
    preemption: Preemption
    resume: Resume

    def perplexity(self, model: nn.Module) -> float:
        """Return the perplexity of the configured text, under its own clock."""
        config = self.run.config
        with self.record.stage("perplexity"):
            settings, text = config.evaluate.perplexity, self.supply.inputs.text
            return text_perplexity(model, text, settings, progress=config.progress)
