"""``logger=csv``: one row a metric, so that any set of metrics fits one file."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lillama.config import LoggerConfig


class CsvLogger:
    """Writes ``metrics.csv`` (tokens, metric, value) into the run's folder, flushed at every call."""

    def __init__(self, config: LoggerConfig, folder: Path, *, group: str, settings: dict[str, Any]) -> None:
        self._file = (folder / "metrics.csv").open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(("tokens", "metric", "value"))

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Append a row a metric."""
        self._rows.writerows((tokens, name, value) for name, value in metrics.items())
        self._file.flush()

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Close the file; the figures are in ``results.json``."""
        self._file.close()
