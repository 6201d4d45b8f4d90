"""Validate a request and load all but the weights, so that bad input fails before a model is loaded."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.config import (
    AdamPrecision,
    BlockwiseConfig,
    DataConfig,
    DomainsConfig,
    Dtype,
    ModelConfig,
    Parallel,
    RunConfig,
    Source,
    Stage,
    Task,
    domain_key,
)
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.data.calibration import Calibration
from lillama.data.generated import Writer, check_written, writes
from lillama.data.mixed import text_blocks
from lillama.data.speech import speech_clips
from lillama.data.utterances import Utterance, read_speech
from lillama.evaluate.perplexity import MeasuredText, measured_text
from lillama.evaluate.samples import check_room, prompt_tokens
from lillama.evaluate.tasks import Tasks, harness_tasks
from lillama.evaluate.transcribe import check_positions
from lillama.evaluate.zero_shot import check_generation
from lillama.finetune import check_finetune, check_teacher
from lillama.model.checkpoint import check_space
from lillama.model.inputs import check_inputs
from lillama.model.limits import Limits, model_limits
from lillama.model.load import (
    check_dense,
    is_compressed,
    load_tokenizer,
    meta_model,
    model_task,
    most_positions,
    resolve_device,
    resolve_dtype,
    same_vocabulary,
)
from lillama.model.targets import ModelShape, model_shape
from lillama.run.checks import check_calibration, check_settings, check_texts
from lillama.run.fits import check_memory
from lillama.strategy import Spectra, make_plan, takes_table
from lillama.strategy.plan import RankPlan

READ_TEXT = {Stage.perplexity, Stage.throughput, Stage.stable_rank}
# What a model cannot run that predicts no next token of text.
OF_TEXT = {*READ_TEXT, Stage.zero_shot, Stage.samples, Stage.domains}


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The tokenizer, and what no stage needs is None: calibration tokens, those of the fine-tuning, the text that
    perplexity, speed and stable ranks are measured on, the harness's tasks, speech with its transcripts, texts of
    several kinds."""

    tokenizer: Any
    data: Calibration | None = None
    tuning: Calibration | None = None
    text: MeasuredText | None = None
    tasks: Tasks | None = None
    speech: Sequence[Utterance] | None = None
    domains: Mapping[str, MeasuredText] | None = None


def prepare_plan(
    config: RunConfig, folder: Path, *, spectra: Spectra | None = None, known: RankPlan | None = None
) -> RankPlan:
    """Return the plan, from shapes or from ``spectra``; with the checks of whether it can be carried out.

    :param spectra: asked for by a strategy with ``from_spectra`` when all else has been found right.
    :param known: the plan that an earlier part of this run was made by, which is kept.
    :raises ConfigError: for a request out of reach, stages or data that do not suit the model, or a full disk.
    """
    resolve_device(config.model)
    check_dense(config.model, cache_of(config))
    model = meta_model(config.model, cache_of(config))
    shape = model_shape(model, config.model.targets).factored(config.factors.form)
    if set(config.stages) != {Stage.plan} or config.calibrates:
        check_runnable(config)
        check_settings(config, model_limits(model))
        check_memory(config)
        _check_table(config, shape)
    plan = known or make_plan(shape, config.strategy, spectra)
    if Stage.init in config.stages and config.save_checkpoint:
        check_space(folder, plan.parameters, resolve_dtype(config.model))
    return plan


def plan_shape(config: RunConfig) -> ModelShape:
    """Return the configured model's matrices, with factors stored as configured."""
    return model_shape(meta_model(config.model, cache_of(config)), config.model.targets).factored(config.factors.form)


def prepare_inputs(config: RunConfig, writer: Writer) -> RunInputs:
    """Tokenizer, tokens, tasks and speech.

    :param writer: loads the dense model, for texts that it writes itself.
    :raises ConfigError: for texts, tasks or sounds that are missing, unreadable, too few, longer than the model has
        positions, or of tokens that it does not know.
    """
    stages, evaluate = set(config.stages), config.evaluate
    tunes = Stage.finetune in stages
    tokenizer = load_tokenizer(config.model, cache_of(config))
    model = meta_model(config.model, cache_of(config))
    if config.calibrates or tunes:
        check_inputs(model)
    limits = _limits(config, model)
    check_settings(config, limits)
    prompts = prompt_tokens(tokenizer, evaluate.samples) if Stage.samples in stages else []
    if prompts:
        check_room(model, prompts, evaluate.samples)
    if Stage.wer in stages:
        check_positions(model, evaluate.wer)
    if Stage.zero_shot in stages and evaluate.zero_shot.chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("evaluate.zero_shot.chat_template=true: the model's tokenizer has none")
    if config.baseline is not None and Stage.init not in stages:
        check_baseline(config, config.baseline)
    inputs = RunInputs(
        tokenizer=tokenizer,
        data=_calibration(config, config.data, tokenizer, limits, writer) if config.calibrates else None,
        tuning=_calibration(config, config.finetune_data, tokenizer, limits, writer) if tunes else None,
        text=measured_text(evaluate.perplexity, tokenizer) if stages & READ_TEXT else None,
        tasks=_tasks(config) if Stage.zero_shot in stages else None,
        speech=read_speech(evaluate.wer, tokenizer) if Stage.wer in stages else None,
        domains=_domains(evaluate.domains, tokenizer) if Stage.domains in stages else None,
    )
    check_texts(config, limits, tokenizer, text=inputs.text, domains=inputs.domains, prompts=prompts)
    if inputs.tasks is not None:
        check_generation(model, inputs.tasks)
    return inputs


def _limits(config: RunConfig, model: Any) -> Limits:
    """Return the limits of the model, or where a dense one is measured beside it, of both."""
    own, base = model_limits(model), config.baseline
    if base is None or not config.evaluate.dense or Stage.init in config.stages:
        return own
    return own.least(model_limits(meta_model(base, cache_of(config))))


def _domains(config: DomainsConfig, tokenizer: Any) -> dict[str, MeasuredText]:
    return {name: measured_text(own, tokenizer, domain_key(name)) for name, own in config.texts.items()}


def check_baseline(config: RunConfig, base: ModelConfig) -> None:
    """Raise a :class:`ConfigError` where the dense model beside a checkpoint cannot be compared with it."""
    if is_compressed(base, cache_of(config)):
        raise ConfigError(f"{base.KEY}={base.path}: is compressed; the dense model is wanted")
    if not same_vocabulary(base, config.model, cache_of(config)):
        raise ConfigError(f"{base.KEY}={base.path}: has another tokenizer; measure it in a run of its own")


def _tasks(config: RunConfig) -> Tasks:
    return harness_tasks(config.evaluate.zero_shot, config.evaluate.tasks_dir, kept(config))


def cache_of(config: RunConfig) -> Path:
    """Return the folder that keeps imports and tokens between runs."""
    return Path(config.cache_dir).expanduser()


def kept(config: RunConfig) -> Cache:
    """Open the cache of a configuration, within its limit."""
    return Cache.at(config.cache_dir, config.cache_limit_gb)


def _calibration(config: RunConfig, data: DataConfig, tokenizer: Any, limits: Limits, writer: Writer) -> Calibration:
    speech = data.source is Source.speech
    found: Calibration = speech_clips(data, tokenizer) if speech else text_blocks(data, tokenizer, kept(config), writer)
    check_calibration(data.KEY, found, limits, tokenizer)
    return found


def check_runnable(config: RunConfig) -> None:
    """Raise a :class:`ConfigError` where the stages, the model and the data do not go together."""
    task, stages = model_task(config.model, cache_of(config)), set(config.stages)
    name = config.model.name
    out = OF_TEXT if task in (Task.masked_lm, Task.speech_seq2seq) else {Stage.wer}
    if stages & out:
        left = ", ".join(stage.name for stage in config.stages if stage not in out)
        what = "writes no text" if task is Task.masked_lm else "hears" if Stage.wer not in out else "hears nothing"
        wrong = ", ".join(sorted(stage.name for stage in stages & out))
        raise ConfigError(f"stages: {name} is a {task.name} model and {what}, so not {wrong}; give stages=[{left}]")
    if Stage.perplexity in stages and task is Task.seq2seq_lm and config.evaluate.perplexity.stride is not None:
        raise ConfigError("evaluate.perplexity.stride: an encoder-decoder reads windows that do not overlap; give null")
    if config.calibrates and (task is Task.speech_seq2seq) != (config.data.source is Source.speech):
        wanted = "speech" if task is Task.speech_seq2seq else "a text"
        raise ConfigError(f"data.source={config.data.source.name}: {name} is a {task.name} model and needs {wanted}")
    _check_writer(config)
    if Stage.finetune in stages:
        check_finetune(config, task, compressed=is_compressed(config.model, cache_of(config)))
        check_teacher(config, cache_of(config))
    if config.distill.moments is AdamPrecision.int8 and importlib.util.find_spec("torchao") is None:
        raise ConfigError("distill.moments=int8: needs the package torchao (pip install torchao)")
    if config.model.dtype is Dtype.float16 and Stage.distill in stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")


def _check_table(config: RunConfig, shape: ModelShape) -> None:
    """Raise where a tied embedding may be cut that the blocks could not learn one after the other."""
    if not takes_table(config.strategy) or shape.table is None or Stage.distill not in config.stages:
        return
    blockwise = isinstance(config.distill.schedule, BlockwiseConfig)
    if blockwise or config.parallel is Parallel.blocks:
        one = "distill/schedule=blockwise" if blockwise else "parallel=blocks"
        raise ConfigError(f"{one}: cannot teach a tied embedding; give strategy.tied_embedding=false")


def _check_writer(config: RunConfig) -> None:
    """Raise a :class:`ConfigError` where the dense model is to write texts that it cannot."""
    read = [(config.data, config.calibrates), (config.finetune_data, Stage.finetune in config.stages)]
    wanted = [data for data, needed in read if needed and writes(data)]
    if wanted:
        writer, cache_dir = config.writer, cache_of(config)
        task, positions = model_task(writer, cache_dir), most_positions(writer, cache_dir)
        for data in wanted:
            check_written(data, writer.name, task, positions)
