"""Compression in one call from Python: what ``run.py`` does, for a model and texts that are already in memory."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lillama.cache import Cache
from lillama.config import (
    DataConfig,
    DistillConfig,
    FactorForm,
    FeatureConfig,
    InitConfig,
    Inputs,
    LearningRate,
    LossConfig,
    Source,
    StrategyConfig,
    TargetsConfig,
    Task,
    UniformConfig,
)
from lillama.data.rows import check_row
from lillama.data.tokens import blocks_up_to
from lillama.distill import Session
from lillama.distill import distill as distil_blocks
from lillama.errors import ConfigError
from lillama.init import FactorCache, start_factors
from lillama.init.planning import plan_spectra
from lillama.model.student import Student
from lillama.model.surgery import low_rank_config
from lillama.model.targets import model_shape
from lillama.model.task import task_of_architecture
from lillama.runtime import LowRank, mark
from lillama.strategy import make_plan


def compress(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str | Mapping[str, Any]],
    *,
    reduction: float = 0.2,
    tokens: int | None = 65536,
    seq_len: int = 512,
    targets: TargetsConfig | None = None,
    strategy: StrategyConfig | None = None,
    factors: FactorForm | str = FactorForm.plain,
    init: InitConfig | None = None,
    loss: LossConfig | None = None,
    distill: DistillConfig | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Make a transformers model smaller, in place, and return it; ``save_pretrained`` then writes its factors.

    The defaults are those of ``preset=recommended``, and give the weights that ``run.py`` gives for the same texts.

    :param model: a causal language model, a text encoder-decoder or a BERT-like encoder of transformers.
    :param tokenizer: its tokenizer.
    :param texts: calibration texts, all of which are read: strings, or rows with ``text``, with ``instruction`` and
        ``output``, or with ``conversations`` or ``messages``.
    :param reduction: the share of the model's parameters that is removed.
    :param tokens: how many calibration tokens are used; None for all that the texts hold.
    :param seq_len: tokens of one calibration sequence.
    :param targets: which matrices may be replaced. :param strategy: ranks by another strategy than ``uniform``, for
        instance ``BottomConfig(reduction=0.2)`` or ``SpectrumConfig``; its own ``reduction`` counts then.
    :param factors: how they are stored, ``plain`` or ``pivoted`` (the same function in fewer parameters).
    :param init, loss, distill, data: the other configurations of a run, where the recommended ones are not wanted.
    :param seed: of torch's random numbers.
    :return: the model, compressed, in evaluation mode; every parameter may be trained further.
    :raises ConfigError: for a request out of reach, or too little text, before the model is touched.
    :raises DivergedError: for a loss that is not finite.
    """
    _check(model)
    form = _form(factors)
    shape, init = model_shape(model, targets).factored(form), init or FeatureConfig()
    strategy = strategy or UniformConfig(reduction=reduction)
    blocks = _blocks(texts, tokenizer, data or _data_config(tokens, seq_len), exact=tokens is not None)
    with _between(strategy) as cache:

        def spectra(names: Sequence[str]) -> Mapping[str, Sequence[float]]:
            model.eval()
            options: dict[str, Any] = {"form": form, "cache": cache, "progress": progress}
            return plan_spectra(model, names, blocks, strategy, init, **options)[0]

        plan = make_plan(shape, strategy, spectra)
        torch.manual_seed(seed)
        model.eval()
        made = start_factors(model, plan.ranks, blocks, init, form=form, cache=cache, progress=progress)
        student = Student(model, made)
    loss = loss or LossConfig(inputs=Inputs.teacher_student)
    distil_blocks(student, blocks, distill or _recommended(), loss, Session(progress=progress))
    student.check_finite()
    compressed = student.settle().requires_grad_(True)
    mark(compressed, low_rank_config(compressed, plan.ranks, without_bias=not init.keep_bias))
    return compressed


def _check(model: Any) -> None:
    """Raise where a model cannot be compressed here, before anything is touched."""
    if any(isinstance(module, LowRank) for module in model.modules()):
        raise ConfigError("model: is compressed already")
    if model.dtype == torch.float16:
        raise ConfigError("model: local gradients underflow in float16; load it in bfloat16 or float32")
    if task_of_architecture(model.config) is Task.speech_seq2seq:
        raise ConfigError("model: a speech model is compressed by run.py with data=speech")


def _form(factors: FactorForm | str) -> FactorForm:
    if isinstance(factors, FactorForm):
        return factors
    if factors not in FactorForm.__members__:
        raise ConfigError(f"factors={factors}: is none of {', '.join(FactorForm.__members__)}")
    return FactorForm[factors]


@contextmanager
def _between(strategy: StrategyConfig) -> Iterator[FactorCache | None]:
    """Where spectra lie on the disk from the plan to the start, of a strategy that plans by them."""
    if not strategy.from_spectra:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lillama-") as folder:
        yield FactorCache(Cache(Path(folder)), "the model")


def _recommended() -> DistillConfig:
    """``distill=recommended``."""
    return DistillConfig(batch_size=1, lr=3e-4, lr_schedule=LearningRate.cosine, warmup=0.05)


def _data_config(tokens: int | None, seq_len: int) -> DataConfig:
    return DataConfig(source=Source.local, path="texts", tokens=tokens, seq_len=seq_len)


def _blocks(texts: Iterable[str | Mapping[str, Any]], tokenizer: Any, config: DataConfig, *, exact: bool) -> Any:
    if config.MAKES is not None:
        raise ConfigError(f"data: the texts are those that are given, and none are {config.MAKES.name}")
    if isinstance(texts, str):
        raise ConfigError("texts: must be a list of texts, not one string")
    rows = [{"text": text} if isinstance(text, str) else dict(text) for text in texts]
    for number, row in enumerate(rows, 1):
        check_row(row, f"texts: row {number}")
    blocks = blocks_up_to(config, rows, tokenizer)
    if exact and blocks.tokens < config.budget:
        raise ConfigError(f"tokens={config.tokens}: the texts hold only {blocks.tokens}; tokens=None takes all")
    return blocks
