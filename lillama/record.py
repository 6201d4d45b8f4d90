"""A run under way: its result so far, its stopwatch, its logger. Whatever happens, ``results.json`` says so."""

import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from lillama.config import RunConfig, Stage, plain
from lillama.data.calibration import Calibration
from lillama.errors import ConfigError, DeviceMemoryError
from lillama.evaluate.perplexity import MeasuredText
from lillama.logger import Logger, make_logger
from lillama.logger.none import NoLogger
from lillama.machine import device_peak, hardware, host_peak, reset_peaks
from lillama.provenance import git_state, versions
from lillama.results import FILE, RunResult, read_result, write_json
from lillama.strategy.forecast import draw_forecast
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint"
SNAPSHOTS, SCRATCH = "snapshots", "scratch"
TUNING_SNAPSHOTS = "snapshots_finetune"
LOCK = ".lock"
ROOM = {  # how a stage needs less of the device
    "init": "set model.offload=true, or init=svd, which needs no moments",
    "distill": "lower distill.micro_batch, or set distill/schedule=blockwise with model.offload=true",
    "finetune": "lower finetune.micro_batch, or set finetune.activation_checkpointing=true, or finetune=lora",
    "perplexity": "lower evaluate.perplexity.batch_size or .seq_len, or set model.offload=true",
    "zero_shot": "lower evaluate.zero_shot.batch_size, or set model.offload=true",
    "wer": "lower evaluate.wer.batch_size",
    "throughput": "lower evaluate.throughput.batch_size or .lengths",
    "domains": "lower evaluate.domains.texts.NAME.batch_size or .seq_len",
    "stable_rank": "lower evaluate.stable_rank.batch_size or .seq_len",
}
STABLE_RANK_CHART = "stable_rank.png"
FORECAST = ("forecast.json", "forecast.png")
OUTPUTS = (
    *(FILE, "plan.json", "curve.csv", "curve.png", "finetune.csv", "finetune.png"),
    *("metrics.csv", "bench.png", STABLE_RANK_CHART, *FORECAST),
)


class Record:
    """The result so far and what is told to the logger."""

    def __init__(self, folder: Path, result: RunResult, logger: Logger, *, main: bool = True) -> None:
        self.folder = folder
        self.main = main
        self.result = result
        self.logger = logger
        self._running: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within under this stage; a stage inside another stops the outer one's clock.

        :raises DeviceMemoryError: where the device has no memory left for it.
        """
        self._lap()
        self.note_peaks()  # some stages begin the count anew
        self._running.append(name)
        try:
            yield
        except torch.OutOfMemoryError as error:
            hint = ROOM.get(name, "set model.offload=true")
            raise DeviceMemoryError(f"out of device memory in the stage {name}: {hint}") from error
        finally:
            self._lap()
            self._running.pop()

    def note_peaks(self) -> None:
        """Keep the highest memory so far."""
        device, result = device_peak(), self.result
        result.peak_memory = max(result.peak_memory, host_peak())
        if device is not None:
            result.peak_device_memory = max(result.peak_device_memory or 0, device)

    def note(self) -> dict[str, Any]:
        """What a snapshot keeps of the record, as plain values."""
        self._lap()
        self.note_peaks()
        return {
            "seconds": dict(self.result.seconds),
            "tokens": self.result.tokens,
            "peak_memory": self.result.peak_memory,
            "logger": self.logger.state(),
        }

    def go_on(self, note: Mapping[str, Any]) -> None:
        """Count on from where a run stood when it made a note of its record."""
        result = self.result
        result.seconds, result.tokens, result.peak_memory = dict(note["seconds"]), note["tokens"], note["peak_memory"]

    def take_over(self, note: Mapping[str, Any]) -> None:
        """Go on from a distillation that another run has made, and tell the logger its curve."""
        self.go_on(note)
        for tokens, value in note["curve"]["points"]:
            self.log_perplexity(tokens, value)

    def note_plan(self, plan: RankPlan) -> None:
        """Keep what the plan comes to, and the plan itself as ``plan.json``."""
        result = self.result
        result.parameters = {"dense": plan.dense_parameters, "compressed": plan.parameters}
        result.reduction = {"requested": plan.requested, "realised": plan.realised}
        result.blocks, result.matrices = len(plan.blocks), len(plan.ranks)
        if plan.predicted_loss_rise is not None:
            result.loss_rise["predicted"] = plan.predicted_loss_rise
        if self.main:
            write_json(self.folder / "plan.json", plan.as_dict())

    def note_forecast(self, found: dict[str, Any]) -> None:
        """Keep the loss that is expected at several sizes, as ``forecast.json`` and a chart."""
        data, chart = (self.folder / name for name in FORECAST)
        write_json(data, found)
        draw_forecast(found, chart, title=f"{self.result.settings['model']['name']}, on its calibration tokens")

    def note_models(self, parameters: dict[str, int]) -> None:
        """Keep how many parameters the measured models have, by role; for a run that has no plan."""
        self.result.parameters = self.result.parameters or parameters

    def note_data(self, data: Calibration | None, text: MeasuredText | None) -> None:
        """Keep what the tokens were."""
        if data is not None:
            self.result.data |= {"hash": data.hash, "tokens": data.tokens}
        if text is not None:
            self.result.data |= {"perplexity_tokens": len(text), "perplexity_bytes": text.bytes}

    def note_curve(self, figures: dict[str, float], points: list[tuple[int, float]], text: MeasuredText | None) -> None:
        """Keep the perplexities, and what they come to for a byte of the text."""
        self.result.perplexity, self.result.curve = figures, points
        if "dense" in figures and "start" in figures:
            self.result.loss_rise["measured"] = math.log(figures["start"] / figures["dense"])
        if text is not None:
            self.result.bits_per_byte = {name: text.bits_per_byte(value) for name, value in figures.items()}

    def note_finetune(self, figures: dict[str, Any], perplexity: float | None, text: MeasuredText | None) -> None:
        """Keep what a fine-tuning was, and the perplexity after it."""
        self.result.finetune = figures | {"seconds": self.result.seconds["finetune"]}
        if perplexity is not None and text is not None:
            self.result.perplexity["finetuned"] = perplexity
            self.result.bits_per_byte["finetuned"] = text.bits_per_byte(perplexity)

    def note_measured(self, stage: str, role: str, figures: dict[str, Any]) -> None:
        """Keep what a stage has found of a model so far; it is on disk at once, however the run ends."""
        self.result.measured.setdefault(stage, {})[role] = figures
        self._lap()
        if self.main:
            write_json(self.folder / FILE, self.result.as_dict())

    def log_step(self, tokens: int, metrics: dict[str, float]) -> None:
        """A step of the distillation is done."""
        self.result.tokens = tokens
        self.logger.log({**metrics, "peak_memory": host_peak()}, tokens=tokens)

    def log_update(self, tokens: int, metrics: dict[str, float]) -> None:
        """An update of the fine-tuning is done, after so many tokens of its own."""
        named = {f"finetune/{name}": value for name, value in metrics.items()}
        self.logger.log({**named, "peak_memory": host_peak()}, tokens=tokens)

    def log_perplexity(self, tokens: int, value: float, name: str = "perplexity") -> None:
        """A point of a curve was measured."""
        self.logger.log({name: value}, tokens=tokens)
        log.info("%s %.2f at %s tokens", name, value, f"{tokens:,}")

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            seconds = self.result.seconds
            seconds[self._running[-1]] = seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process; the lock goes with the process, however it ends.

    :raises ConfigError: where another process is at work in it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"hydra.run.dir={folder}: another process is at work in this folder") from None
    try:
        yield
    finally:
        lock.release()


def finished(config: RunConfig, folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result that a folder already holds for this very run, with the checkpoint where one is asked for.

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
    wanted = config.save_checkpoint and bool({Stage.init, Stage.finetune} & set(config.stages))
    return None if wanted and not (folder / CHECKPOINT).is_dir() else found


def refuse(config: RunConfig, folder: Path, overrides: Sequence[str], error: Exception) -> None:
    """Leave word of a run that could not begin, so that the report of a sweep says FAILED and why, not MISSING."""
    if read_result(folder) is None:
        result = RunResult(
            status="failed",
            fingerprint="",
            name=config.name,
            overrides=list(overrides),
            settings=plain(config),
            provenance={},
            error=f"{type(error).__name__}: {error}",
        )
        write_json(folder / FILE, result.as_dict())


def clear(folder: Path) -> None:
    """Remove what an earlier, unfinished run left; a figure of one run must not stand beside those of another."""
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINT, SNAPSHOTS, TUNING_SNAPSHOTS, SCRATCH):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def following(config: RunConfig, folder: Path) -> Iterator[Record]:
    """The record of a process that keeps none: nothing is written."""
    result = RunResult(status="running", fingerprint="", name=config.name, overrides=[], settings={}, provenance={})
    yield Record(folder, result, NoLogger(), main=False)


@contextmanager
def recording(
    config: RunConfig,
    folder: Path,
    fingerprint: str,
    overrides: Sequence[str],
    *,
    note: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Keep a run's record: done, failed or interrupted, the folder ends with a whole ``results.json``.

    What an unfinished run left in the folder is removed first, unless the run goes on with it.

    :param note: what :meth:`Record.note` gave when the snapshot was made that the run goes on from.
    """
    reset_peaks()
    if note is None:
        clear(folder)
    settings = plain(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)), encoding="utf-8")
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    provenance = {"versions": versions(), "git": git_state(), "hardware": hardware(), "started": started}
    resume = None if note is None else {"tokens": note["tokens"], **note["logger"]}
    logger = make_logger(config.logger, folder, group=config.name, settings=settings, resume=resume)
    result = RunResult(
        status="running",
        fingerprint=fingerprint,
        name=config.name,
        overrides=list(overrides),
        settings=settings,
        provenance=provenance,
    )
    record = Record(folder, result, logger)
    if note is not None:
        record.go_on(note)
    write_json(folder / FILE, result.as_dict())
    try:
        yield record
    except BaseException as error:
        result.status = "failed" if isinstance(error, Exception) else "interrupted"
        result.error = f"{type(error).__name__}: {error}"
        raise
    else:
        result.status = "done"
    finally:
        record.note_peaks()
        write_json(folder / FILE, result.as_dict())
        logger.finish(result.figures(), failed=result.status != "done")
