"""Send metrics somewhere while a run is under way: nowhere, a CSV file, or Weights & Biases."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lillama.config import LoggerConfig, LoggerKind
from lillama.run.logger.csv import CsvLogger
from lillama.run.logger.none import NoLogger
from lillama.run.logger.wandb import WandbLogger


class Logger(Protocol):
    """Interface of a logger."""

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Record metrics at a number of seen tokens."""

    def state(self) -> dict[str, Any]:
        """Return what a logger needs to resume this run in another process, as plain values."""

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Record the run's figures and close."""


LOGGERS: dict[LoggerKind, Callable[..., Logger]] = {
    LoggerKind.none: NoLogger,
    LoggerKind.csv: CsvLogger,
    LoggerKind.wandb: WandbLogger,
}


def make_logger(
    config: LoggerConfig,
    folder: Path,
    *,
    group: str,
    settings: dict[str, Any],
    resume: Mapping[str, Any] | None = None,
) -> Logger:
    """Return the logger of a run; ``group`` is the sweep's name, ``settings`` the whole configuration.

    :param resume: to go on with a run: its logger's state, and the ``tokens`` it had seen.
    """
    return LOGGERS[config.kind](config, folder, group=group, settings=settings, resume=resume)
