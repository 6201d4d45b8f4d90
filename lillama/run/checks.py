"""Refuse, before a model is loaded, what does not go together: stages, model, data and lengths."""

import importlib.util
from typing import Any

import numpy as np

from lillama.config import AdamPrecision, BlockwiseConfig, Dtype, Parallel, Source, Stage, Task
from lillama.core.errors import ConfigError
from lillama.data.generated import check_written, writes
from lillama.data.speech import SpeechClips
from lillama.data.tokens import TokenBlocks
from lillama.finetune import check_finetune, check_teacher
from lillama.model.limits import Limits, check_length, check_tokens
from lillama.model.source import ModelSource
from lillama.model.targets import ModelShape
from lillama.run.run import Run
from lillama.strategy import takes_table

READ_TEXT = {Stage.perplexity, Stage.throughput, Stage.stable_rank}
# What a model cannot run that predicts no next token of text.
OF_TEXT = {*READ_TEXT, Stage.zero_shot, Stage.samples, Stage.domains}


def check_runnable(run: Run) -> None:
    """Raise a :class:`ConfigError` where the stages, the model and the data do not go together."""
    config, task, stages = run.config, run.model.task, run.stages
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
    _check_writer(run)
    if Stage.finetune in stages:
        check_finetune(config, task, compressed=run.model.compressed)
        check_teacher(config, run.model, run.baseline)
    if config.distill.moments is AdamPrecision.int8 and importlib.util.find_spec("torchao") is None:
        raise ConfigError("distill.moments=int8: needs the package torchao (pip install torchao)")
    if config.model.dtype is Dtype.float16 and Stage.distill in stages:
        raise ConfigError("model.dtype=float16: local gradients underflow in it; distil in bfloat16 or float32")


def _check_writer(run: Run) -> None:
    """Raise a :class:`ConfigError` where the dense model is to write texts that it cannot."""
    config = run.config
    read = [(config.data, config.calibrates), (config.finetune_data, Stage.finetune in run.stages)]
    for data in (data for data, needed in read if needed and writes(data)):
        writer = run.writer
        check_written(data, writer.config.name, writer.task, writer.positions)


def check_table(run: Run, shape: ModelShape) -> None:
    """Raise where a tied embedding may be cut that the blocks could not learn one after the other."""
    config = run.config
    if not takes_table(config.strategy) or shape.table is None or Stage.distill not in run.stages:
        return
    blockwise = isinstance(config.distill.schedule, BlockwiseConfig)
    if blockwise or config.parallel is Parallel.blocks:
        one = "distill/schedule=blockwise" if blockwise else "parallel=blocks"
        raise ConfigError(f"{one}: cannot teach a tied embedding; give strategy.tied_embedding=false")


def check_baseline(base: ModelSource, model: ModelSource) -> None:
    """Raise a :class:`ConfigError` where the dense model beside a checkpoint cannot be compared with it."""
    where = f"{base.config.KEY}={base.config.path}"
    if base.compressed:
        raise ConfigError(f"{where}: is compressed; the dense model is wanted")
    if not base.same_vocabulary(model):
        raise ConfigError(f"{where}: has another tokenizer; measure it in a run of its own")


def check_sequences(run: Run, limits: Limits) -> None:
    """Raise a :class:`ConfigError` for sequences to learn from that are longer than the model has positions."""
    config = run.config
    groups = [config.data] if config.calibrates or Stage.bench in run.stages else []
    groups += [config.finetune.data] if Stage.finetune in run.stages else []
    for data in groups:
        if data.source is not Source.speech:
            check_length(f"{data.KEY}.seq_len", data.seq_len, limits.text)


def check_calibration(key: str, data: SpeechClips | TokenBlocks, limits: Limits, tokenizer: Any) -> None:
    """Check the examples that a model is calibrated or fine-tuned on.

    :param key: the configuration group. :param data: blocks of tokens, or sound with its transcripts.
    :raises ConfigError: for tokens that the model does not know, or transcripts longer than its decoder.
    """
    if isinstance(data, SpeechClips):
        start = data.processor.tokenizer.bos_token_id  # what the decoder is given anyway takes no position
        longest = max(len(clip.ids) - (clip.ids[0] == start) for clip in data.clips)
        check_length(f"{key}.seq_len", longest, limits.written)
        check_tokens(key, [token for clip in data.clips for token in clip.ids], limits, tokenizer)
        return
    real = np.arange(data.ids.shape[1]) < data.lengths[:, None]
    check_tokens(key, data.ids[real], limits, tokenizer)
