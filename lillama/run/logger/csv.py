"""``logger=csv``: one row a metric, so that any set of metrics fits one file."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lillama.config import LoggerConfig
from lillama.core.results import write_csv

COLUMNS = ("tokens", "metric", "value")


class CsvLogger:
    """Writes ``metrics.csv`` (tokens, metric, value) into the run's folder, flushed at every call."""

    def __init__(
        self,
        config: LoggerConfig,
        folder: Path,
        *,
        group: str,
        settings: dict[str, Any],
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        file = folder / "metrics.csv"
        kept = 0 if resume is None else resume.get("rows", 0)  # none where the run had another logger before
        before = _rows(file)[:kept] or [list(COLUMNS)]
        write_csv(file, before)  # whole at every moment: a run may be killed again while it starts
        self._count = len(before)
        self._file = file.open("a", newline="")
        self._writer = csv.writer(self._file)

    def state(self) -> dict[str, Any]:
        """Count the rows: what comes after a snapshot will be computed again."""
        return {"rows": self._count}

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Append a row a metric."""
        self._writer.writerows((tokens, name, value) for name, value in metrics.items())
        self._count += len(metrics)
        self._file.flush()

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Close the file; the figures are in ``results.json``."""
        self._file.close()


def _rows(file: Path) -> list[list[str]]:
    if not file.is_file():
        return [list(COLUMNS)]
    with file.open(newline="") as held:
        return list(csv.reader(held))
