"""Keep a run's result so far, its stopwatch and its logger."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lillama.config import LoggerConfig
from lillama.core.errors import DeviceMemoryError
from lillama.core.machine import device_peak, host_peak
from lillama.core.outputs import FORECAST, METRICS, PASSING, PLAN, SETTINGS, UNFINISHED, Outputs
from lillama.core.results import FILE, RunResult, write_json
from lillama.data.calibration import Calibration, described
from lillama.evaluate.perplexity import MeasuredText
from lillama.run.logger import Logger, make_logger
from lillama.run.logger.none import NoLogger
from lillama.strategy.forecast import draw_forecast
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)
OOM_HINTS = {  # how a stage needs less of the device
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


class Record:
    """The result so far and what is told to the logger."""

    def __init__(self, outputs: Outputs, result: RunResult, start: "Start | None" = None) -> None:
        self.outputs = outputs
        self.result = result
        self.logger: Logger = NoLogger()
        self.begun = False
        self._start = start
        self._running: list[str] = []
        self._since = time.perf_counter()

    @property
    def main(self) -> bool:
        """Tell whether this process keeps the records."""
        return self._start is not None

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return self.outputs.folder

    def begin(self) -> None:
        """Write to the folder from here on: all checks have passed. What an earlier, unfinished run left goes first.

        A second call does nothing.
        """
        if self.begun or self._start is None:
            return
        start, outputs = self._start, self.outputs
        outputs.begin(self.result.fingerprint)
        if start.note is None:  # a figure of one run must not stand beside those of another
            outputs.remove(*PASSING, *UNFINISHED)
        outputs.claim(FILE, SETTINGS, METRICS)
        outputs.reserve()
        settings, group = {"choices": self.result.choices, **self.result.settings}, self.result.name
        text = OmegaConf.to_yaml(OmegaConf.create(settings))
        (self.folder / SETTINGS).write_text(text, encoding="utf-8")
        resume = None if start.note is None else {"tokens": start.note["tokens"], **start.note["logger"]}
        self.logger = make_logger(start.logger, self.folder, group=group, settings=settings, resume=resume)
        self.begun = True
        write_json(self.folder / FILE, self.result.as_dict())
        for tokens, value in start.curve:
            self.log_perplexity(tokens, value)

    def claim(self, *names: str) -> None:
        """Note that outputs are written from now on."""
        if self.main:
            self.outputs.claim(*names)

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
            hint = OOM_HINTS.get(name, "set model.offload=true")
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
        """Return what a snapshot keeps of the record, as plain values."""
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

    def note_plan(self, plan: RankPlan) -> None:
        """Keep what the plan comes to, and the plan itself as ``plan.json``."""
        result = self.result
        result.parameters = {"dense": plan.dense_parameters, "compressed": plan.parameters}
        result.reduction = {"requested": plan.requested, "realised": plan.realised}
        result.blocks, result.matrices = len(plan.blocks), len(plan.ranks)
        if plan.predicted_loss_rise is not None:
            result.loss_rise["predicted"] = plan.predicted_loss_rise
        if self.main:
            self.claim(PLAN)
            write_json(self.folder / PLAN, plan.as_dict())

    def note_forecast(self, found: dict[str, Any]) -> None:
        """Keep the loss that is expected at several sizes, as ``forecast.json`` and a chart."""
        self.claim(*FORECAST)
        data, chart = (self.folder / name for name in FORECAST)
        write_json(data, found)
        draw_forecast(found, chart, title=f"{self.result.settings['model']['name']}, on its calibration tokens")

    def note_models(self, parameters: dict[str, int]) -> None:
        """Keep how many parameters the measured models have, by role; for a run that has no plan."""
        self.result.parameters = self.result.parameters or parameters

    def note_data(self, data: Calibration) -> None:
        """Keep what the model learnt from."""
        self.result.data |= described(data)

    def note_text(self, text: MeasuredText) -> None:
        """Keep what perplexity is measured on."""
        named = {f"perplexity_{name}": count for name, count in text.counts.as_dict().items()}
        self.result.data |= {"perplexity_tokens": len(text), "perplexity_bytes": text.bytes, **named}

    def note_curve(self, figures: dict[str, float], points: list[tuple[int, float]], text: MeasuredText | None) -> None:
        """Keep the perplexities, and what they come to for a byte of the text; of none, where none were measured."""
        self.result.perplexity, self.result.curve = figures, points
        if "dense" in figures and "start" in figures:
            self.result.loss_rise["measured"] = math.log(figures["start"] / figures["dense"])
        if text is not None:
            self.result.bits_per_byte = {name: text.bits_per_byte(value) for name, value in figures.items()}

    def note_rise(self, measured: float) -> None:
        """Keep the start's rise of the loss on the texts of ``domains``; that on the perplexity's text goes first."""
        self.result.loss_rise.setdefault("measured", measured)

    def note_finetune(self, figures: dict[str, Any]) -> None:
        """Keep what a fine-tuning was."""
        self.result.finetune = figures | {"seconds": self.result.seconds["finetune"]}

    def note_tuned(self, perplexity: float, text: MeasuredText) -> None:
        """Keep the perplexity after a fine-tuning."""
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


@dataclass(frozen=True, slots=True)
class Start:
    """Beginning of a record: its logger, and where it resumes.

    :param note: what :meth:`Record.note` gave when the snapshot was made that the run goes on from.
    :param taken: the note of a distillation that another run has made and this one takes over.
    """

    logger: LoggerConfig
    note: Mapping[str, Any] | None = None
    taken: Mapping[str, Any] | None = None

    @property
    def curve(self) -> Sequence[tuple[int, float]]:
        """Return the points of a distillation that is taken over: the logger has not heard of them."""
        return [] if self.taken is None else self.taken["curve"]["points"]
