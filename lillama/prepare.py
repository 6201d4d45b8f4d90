"""All that a run needs but the model, made first: whatever can be wrong with a request shows here."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.cache import Cache
from lillama.config import DataConfig, DomainsConfig, Dtype, Moments, RunConfig, Source, Stage, Task, domain_key
from lillama.data.calibration import Calibration
from lillama.data.generated import Writer, check_written, writes
from lillama.data.mixed import text_blocks
from lillama.data.speech import speech_clips
from lillama.data.utterances import Utterance, read_speech
from lillama.errors import ConfigError
from lillama.evaluate.perplexity import MeasuredText, measured_text
from lillama.evaluate.samples import prompt_tokens
from lillama.evaluate.tasks import Tasks, harness_tasks
from lillama.finetune import check_finetune, check_teacher
from lillama.model.checkpoint import check_space
from lillama.model.load import (
    check_dense,
    is_compressed,
    load_tokenizer,
    meta_model,
    model_task,
    most_positions,
    resolve_device,
    resolve_dtype,
)
from lillama.model.targets import ModelShape, model_shape
from lillama.strategy import Spectra, make_plan
from lillama.strategy.plan import RankPlan

READ_TEXT = {Stage.perplexity, Stage.throughput, Stage.stable_rank}
# What a model cannot run that predicts no next token of text.
OF_TEXT = {*READ_TEXT, Stage.zero_shot, Stage.samples, Stage.domains}


@dataclass(frozen=True, slots=True)
class Inputs:
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
    """The plan, from shapes or from ``spectra``; with the checks of whether it can be carried out.

    :param spectra: asked for by a strategy with ``from_spectra`` when all else has been found right.
    :param known: the plan that an earlier part of this run was made by, which is kept.
    :raises ConfigError: for a request out of reach, stages or data that do not suit the model, or a full disk.
    """
    resolve_device(config.model)
    if Stage.init in config.stages or config.strategy.from_spectra:
        check_dense(config.model, cache_of(config))
    shape = plan_shape(config)
    if set(config.stages) != {Stage.plan} or config.calibrates:
        check_runnable(config)
    plan = known or make_plan(shape, config.strategy, spectra)
    if Stage.init in config.stages and config.save_checkpoint:
        check_space(folder, plan.parameters, resolve_dtype(config.model))
    return plan


def plan_shape(config: RunConfig) -> ModelShape:
    """The configured model's matrices, with factors stored as configured."""
    return model_shape(meta_model(config.model, cache_of(config)), config.model.targets).factored(config.factors.form)


def prepare_inputs(config: RunConfig, writer: Writer) -> Inputs:
    """Tokenizer, tokens, tasks and speech.

    :param writer: loads the dense model, for texts that it writes itself.
    :raises ConfigError: for texts, tasks or sounds that are missing, unreadable or too few.
    """
    stages, evaluate = set(config.stages), config.evaluate
    tokenizer = load_tokenizer(config.model, cache_of(config))
    if Stage.samples in stages:
        prompt_tokens(tokenizer, evaluate.samples)
    reads = bool(stages & READ_TEXT)
    return Inputs(
        tokenizer=tokenizer,
        data=_calibration(config, config.data, tokenizer, writer) if config.calibrates else None,
        tuning=_calibration(config, config.finetune_data, tokenizer, writer) if Stage.finetune in stages else None,
        text=measured_text(evaluate.perplexity, tokenizer) if reads else None,
        tasks=harness_tasks(evaluate.zero_shot, evaluate.tasks_dir) if Stage.zero_shot in stages else None,
        speech=read_speech(evaluate.wer, tokenizer) if Stage.wer in stages else None,
        domains=_domains(evaluate.domains, tokenizer) if Stage.domains in stages else None,
    )


def _domains(config: DomainsConfig, tokenizer: Any) -> dict[str, MeasuredText]:
    return {name: measured_text(own, tokenizer, domain_key(name)) for name, own in config.texts.items()}


def cache_of(config: RunConfig) -> Path:
    """Where imports and tokens are kept between runs."""
    return Path(config.cache_dir).expanduser()


def kept(config: RunConfig) -> Cache:
    """What is kept there, within its limit."""
    return Cache.at(config.cache_dir, config.cache_limit_gb)


def _calibration(config: RunConfig, data: DataConfig, tokenizer: Any, writer: Writer) -> Calibration:
    if data.source is Source.speech:
        return speech_clips(data, tokenizer)
    return text_blocks(data, tokenizer, kept(config), writer)


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
    if config.distill.moments is Moments.int8 and importlib.util.find_spec("torchao") is None:
        raise ConfigError("distill.moments=int8: needs the package torchao (pip install torchao)")
    if config.model.dtype is Dtype.float16 and Stage.distill in stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")


def _check_writer(config: RunConfig) -> None:
    """Raise a :class:`ConfigError` where the dense model is to write texts that it cannot."""
    read = [(config.data, config.calibrates), (config.finetune_data, Stage.finetune in config.stages)]
    wanted = [data for data, needed in read if needed and writes(data)]
    if wanted:
        writer, cache_dir = config.writer, cache_of(config)
        task, positions = model_task(writer, cache_dir), most_positions(writer, cache_dir)
        for data in wanted:
            check_written(data, writer.name, task, positions)
