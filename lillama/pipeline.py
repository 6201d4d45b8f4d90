"""One run, from a configuration to its result: one call a stage.

RunConfig -> plan -> (teacher, tokenizer, tokens) -> low-rank student -> distilled student and curve -> checkpoint
"""

import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lillama.config import Dtype, FeatureConfig, PlanFileConfig, RunConfig, Stage
from lillama.data.sources import source_identity
from lillama.data.tokens import TokenBlocks, token_blocks
from lillama.distill.joint import Progress, distill
from lillama.errors import ConfigError
from lillama.evaluate.curve import Curve
from lillama.evaluate.perplexity import perplexity, perplexity_ids
from lillama.init import start_factors
from lillama.memory import host_peak
from lillama.model.card import model_card
from lillama.model.checkpoint import check_space, save_checkpoint
from lillama.model.load import load_model, load_tokenizer, meta_model, model_identity, resolve_dtype
from lillama.model.student import Student
from lillama.model.targets import ModelShape, model_shape
from lillama.provenance import digest, path_digest
from lillama.record import Record, finished, plain, recording
from lillama.results import write_json
from lillama.strategy import make_plan
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)


def run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Run the configured stages and return what ``results.json`` holds.

    A folder that already holds this run's result is left alone and its result returned.

    :raises ConfigError: for bad input, before a model is loaded.
    :raises DivergedError: for a loss, a perplexity or a weight that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = run_fingerprint(config)
    previous = finished(folder, fingerprint)
    if previous is not None:
        log.info("already done, nothing to run: %s", folder)
        return previous
    with recording(config, folder, fingerprint) as record:
        inputs = prepare(config, folder, record)
        if set(config.stages) != {Stage.plan}:
            compress(config, inputs, folder, record)
    return record.result.as_dict()


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a run needs but the model: made first, because all that can be wrong with a request shows here."""

    plan: RankPlan
    tokenizer: Any = None
    data: TokenBlocks | None = None
    text: Tensor | None = None


def prepare(config: RunConfig, folder: Path, record: Record) -> Inputs:
    """The plan, the calibration tokens and the text of the curve."""
    cache = Path(config.cache_dir).expanduser()
    with record.stage("plan"):
        shape = model_shape(meta_model(config.model, cache))
        plan = make_plan(shape, config.strategy)
        _record_plan(plan, folder, record)
    if set(config.stages) == {Stage.plan}:
        return Inputs(plan)
    _check_runnable(config, shape, plan)
    if Stage.init in config.stages and config.save_checkpoint:
        check_space(folder, plan.parameters, resolve_dtype(config.model))
    with record.stage("data"):
        tokenizer = load_tokenizer(config.model, cache)
        data = token_blocks(config.data, tokenizer, cache) if _needs_data(config) else None
        text = perplexity_ids(config.evaluate.perplexity, tokenizer) if Stage.perplexity in config.stages else None
    if data is not None:
        record.result.data["hash"] = data.hash
        record.result.data["tokens"] = data.tokens
    if text is not None:
        record.result.data["perplexity_tokens"] = len(text)
    return Inputs(plan, tokenizer, data, text)


def compress(config: RunConfig, inputs: Inputs, folder: Path, record: Record) -> None:
    """Every stage that needs the model."""
    torch.manual_seed(config.seed)
    with record.stage("load"):
        teacher = load_model(config.model, Path(config.cache_dir).expanduser(), seed=config.seed)
    measure = _measure(config, inputs, teacher, record)
    if Stage.perplexity in config.stages:
        record.result.perplexity["dense"] = measure("dense perplexity")
    if Stage.init not in config.stages:
        return
    with record.stage("init"):
        factors = start_factors(teacher, inputs.plan.ranks, inputs.data, config.init, progress=config.progress)
        student = Student(teacher, factors)
    curve = _curve(config, student, measure, folder)
    if Stage.perplexity in config.stages:
        _note_perplexity(record, curve, 0)
    if Stage.distill in config.stages:
        _distill(config, inputs, student, curve, record)
    if Stage.perplexity in config.stages:
        _note_perplexity(record, curve, record.result.tokens)
        record.result.curve = curve.points
        curve.draw(record.result.perplexity["dense"], title=f"{config.model.name}, {inputs.plan.realised:.1%} smaller")
    student.check_finite()
    if config.save_checkpoint:
        with record.stage("save"):
            _save(config, inputs, student.settle(), folder, record)


def _distill(config: RunConfig, inputs: Inputs, student: Student, curve: Curve, record: Record) -> None:
    assert inputs.data is not None
    result = record.result

    def on_step(progress: Progress) -> None:
        result.tokens = progress.tokens
        record.logger.log(_step_metrics(progress), tokens=progress.tokens)
        if Stage.perplexity in config.stages and curve.due(progress.tokens):
            _note_perplexity(record, curve, progress.tokens)

    with record.stage("distill"):
        distill(student, inputs.data, config.distill, config.loss, on_step=on_step, progress=config.progress)


def _step_metrics(progress: Progress) -> dict[str, float]:
    metrics = {f"loss/block_{index:03d}": loss for index, loss in progress.losses.items()}
    metrics |= {"loss/mean": progress.loss, "lr": progress.lr, "tokens_per_second": progress.tokens_per_second}
    return metrics | {"peak_memory": float(host_peak())}


def _measure(config: RunConfig, inputs: Inputs, model: nn.Module, record: Record) -> Any:
    """A function that measures the perplexity of the model as it stands."""
    settings = config.evaluate.perplexity

    def measure(desc: str = "perplexity") -> float:
        assert inputs.text is not None
        with record.stage("perplexity"):
            return perplexity(
                model,
                inputs.text,
                seq_len=settings.seq_len,
                batch_size=settings.batch_size,
                desc=desc,
                progress=config.progress,
            )

    return measure


def _curve(config: RunConfig, student: Student, measure: Any, folder: Path) -> Curve:
    def measure_student() -> float:
        with student.in_place():
            return measure()

    return Curve(folder, measure_student, config.evaluate.every_tokens)


def _note_perplexity(record: Record, curve: Curve, tokens: int) -> None:
    """Measure and tell the point at this many tokens, unless it was the last one measured."""
    if curve.points and curve.points[-1][0] == tokens:
        return
    value = curve.add(tokens)
    record.result.perplexity.setdefault("start", value)
    record.result.perplexity["end"] = value
    record.logger.log({"perplexity": value}, tokens=tokens)
    log.info("perplexity %.2f at %s tokens", value, f"{tokens:,}")


def _record_plan(plan: RankPlan, folder: Path, record: Record) -> None:
    result = record.result
    result.parameters = {"dense": plan.dense_parameters, "compressed": plan.parameters}
    result.reduction = {"requested": plan.requested, "realised": plan.realised}
    result.blocks, result.matrices = len(plan.blocks), len(plan.ranks)
    write_json(folder / "plan.json", plan.as_dict())


def _save(config: RunConfig, inputs: Inputs, model: nn.Module, folder: Path, record: Record) -> None:
    result = record.result.as_dict()
    save_checkpoint(
        model,
        inputs.tokenizer,
        folder / "checkpoint",
        plan=inputs.plan.as_dict(),
        card=model_card(result),
        without_bias=not config.init.keep_bias,
    )
    record.result.checkpoint = "checkpoint"


def _needs_data(config: RunConfig) -> bool:
    feature = Stage.init in config.stages and isinstance(config.init, FeatureConfig)
    return feature or Stage.distill in config.stages


def _check_runnable(config: RunConfig, shape: ModelShape, plan: RankPlan) -> None:
    """Raise for what can be planned and not be run."""
    fused = [target.name for target in shape.targets if target.copies > 1 and target.name in plan.ranks]
    if fused and Stage.init in config.stages:
        raise ConfigError(f"model={config.model.name}: fused experts ({fused[0]}) can be planned, not yet compressed")
    if config.model.dtype is Dtype.float16 and Stage.distill in config.stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")


def run_fingerprint(config: RunConfig) -> str:
    """What a result depends on: the configuration without paths and loggers, and the content of model and data."""
    from lillama import __version__

    values = plain(config)
    for key in ("name", "cache_dir", "logger", "progress", "save_checkpoint"):
        del values[key]
    values["version"] = __version__
    values["model"]["path"] = values["model"]["tokenizer"] = None
    values["data"]["path"] = values["evaluate"]["perplexity"]["path"] = None
    planned = set(config.stages) == {Stage.plan}
    values["identity"] = [
        model_identity(config.model) if not planned or config.model.architecture is None else config.model.name,
        None if planned else source_identity(config.data, "data"),
        None if planned else source_identity(config.evaluate.perplexity, "evaluate.perplexity"),
        path_digest(Path(config.strategy.file)) if isinstance(config.strategy, PlanFileConfig) else None,
    ]
    return digest(_named(values))


def _named(values: Any) -> Any:
    """Enums by their names, so that a configuration can be hashed."""
    if isinstance(values, dict):
        return {str(key): _named(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_named(value) for value in values]
    return values.name if isinstance(values, Enum) else values
