"""A measure: a stage that looks at one model by itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lillama.config import EvaluateConfig
from lillama.core.cache import Cache
from lillama.evaluate.perplexity import MeasuredText
from lillama.model.limits import Limits

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """Collect all that a measure may look at before a model is loaded.

    :param model: on the meta device. :param limits: those of the model, and of a dense one that is measured beside it.
    :param text: reads the text of ``evaluate.perplexity``, once for all.
    """

    config: EvaluateConfig
    model: Any
    limits: Limits
    tokenizer: Any
    cache: Cache
    text: Callable[[], MeasuredText]
    progress: bool = False


class Measure(ABC):
    """A stage named as its group in ``conf/evaluate``, which gives figures as plain values.

    :cvar CHART: the file in a run's folder that :meth:`draw` writes; None for a measure without a chart.
    """

    CHART: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def read(cls, given: Given) -> "Measure":
        """Read what the measure needs, and check it against the model.

        :raises ConfigError: for what is missing, unreadable, or too long for the model.
        """

    @abstractmethod
    def measure(self, model: nn.Module, *, dense: Figures | None, note: Callable[[Figures], None]) -> Figures:
        """Measure a model in evaluation mode on its device.

        :param dense: what the dense model beside a compressed one has. :param note: keeps the figures so far.
        :raises DivergedError: for a figure that is not finite.
        """

    def draw(self, measured: Mapping[str, Figures], file: Path, *, title: str) -> None:
        """Draw the figures, by role, of a measure that has a ``CHART``."""
        raise NotImplementedError
