"""A run under way: its result so far, its stopwatch, its logger. Whatever happens, ``results.json`` says so."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lillama.config import RunConfig
from lillama.errors import ConfigError
from lillama.logger import Logger, make_logger
from lillama.memory import device_peak, host_peak, reset_peaks
from lillama.provenance import git_state, versions
from lillama.results import FILE, RunResult, read_result, write_json

log = logging.getLogger(__name__)


class Record:
    """The result so far and what is told to the logger."""

    def __init__(self, result: RunResult, logger: Logger) -> None:
        self.result = result
        self.logger = logger
        self._running: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within under this stage; a stage inside another stops the outer one's clock."""
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            seconds = self.result.seconds
            seconds[self._running[-1]] = seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now


def finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result that a folder already holds for this very run.

    :raises ConfigError: where the folder holds the finished result of another run.
    """
    found = read_result(folder)
    if found is None or found["status"] != "done":
        return None
    if found["fingerprint"] != fingerprint:
        raise ConfigError(
            f"hydra.run.dir={folder}: holds another run ({found['name']}, fingerprint {found['fingerprint'][:8]},"
            f" this one is {fingerprint[:8]}); choose another folder or name, or remove it"
        )
    return found


@contextmanager
def recording(config: RunConfig, folder: Path, fingerprint: str) -> Iterator[Record]:
    """Keep a run's record: done, failed or interrupted, the folder ends with a whole ``results.json``."""
    reset_peaks()
    settings = plain(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)), encoding="utf-8")
    provenance = {"versions": versions(), "git": git_state(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    result = RunResult(
        status="running", fingerprint=fingerprint, name=config.name, settings=settings, provenance=provenance
    )
    record = Record(result, make_logger(config.logger, folder, group=config.name, settings=settings))
    try:
        yield record
    except BaseException as error:
        result.status = "failed" if isinstance(error, Exception) else "interrupted"
        result.error = f"{type(error).__name__}: {error}"
        raise
    else:
        result.status = "done"
    finally:
        result.peak_memory, result.peak_device_memory = host_peak(), device_peak()
        write_json(folder / FILE, result.as_dict())
        record.logger.finish(result.figures(), failed=result.status != "done")


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values; enums by name."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
