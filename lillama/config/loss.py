"""Configure what a student block is fed with, and how its output is compared."""

from dataclasses import dataclass

from omegaconf import MISSING

from lillama.config.choices import Distance, Reduction, StudentInputs
from lillama.config.option import option


@option("loss", "loss")
@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Inputs of a student block and the comparison of its output."""

    inputs: StudentInputs = MISSING
    distance: Distance = Distance.l1_cosine
    reduction: Reduction = Reduction.mean
