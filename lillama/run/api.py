"""Compress in one call from Python: what ``run.py`` does, for a model and texts that are already in memory.

>>> from lillama.model.byte_tokenizer import byte_tokenizer
>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
>>> model = LlamaForCausalLM(LlamaConfig(vocab_size=260, **sizes))
>>> before = model.num_parameters()
>>> texts = ["Ranks are picked, each matrix becomes two factors, and the factors learn."] * 20
>>> small = compress(model, byte_tokenizer(), texts, reduction=0.2, tokens=512, seq_len=64, progress=False)
>>> round(small.num_parameters() / before, 2)
0.8
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lillama.config import (
    DataConfig,
    DistillConfig,
    FactorForm,
    FinetuneConfig,
    InitConfig,
    InvalidRows,
    KfacConfig,
    KfacRanksConfig,
    LearningRate,
    LossConfig,
    Objective,
    Source,
    StrategyConfig,
    StudentInputs,
    TargetsConfig,
    Task,
    Tune,
)
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.data.calibration import Calibration
from lillama.data.rows import CheckedRows, ListedRows
from lillama.data.tokens import blocks_up_to
from lillama.distill import LoopContext
from lillama.distill import distill as distil_blocks
from lillama.finetune import TrainableModel, dense_teacher, fine_tune
from lillama.init import FactorCache, start_factors
from lillama.init.planning import plan_spectra
from lillama.model.limits import check_length, model_limits
from lillama.model.lowrank import LowRank, mark
from lillama.model.lowrank.lillama_checks import check_finite
from lillama.model.reading import quantization_of, unreadable
from lillama.model.student import Student
from lillama.model.surgery import low_rank_config
from lillama.model.targets import ModelShape, model_shape
from lillama.model.task import task_of_architecture
from lillama.run.checks import check_calibration
from lillama.strategy import make_plan


def compress(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str | Mapping[str, Any]],
    *,
    reduction: float = 0.2,
    tokens: int | None = 196608,
    seq_len: int = 512,
    targets: TargetsConfig | None = None,
    strategy: StrategyConfig | None = None,
    factors: FactorForm | str = FactorForm.pivoted,
    init: InitConfig | None = None,
    loss: LossConfig | None = None,
    distill: DistillConfig | None = None,
    finetune: FinetuneConfig | None = None,
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
    :param targets: which matrices may be replaced. :param strategy: ranks by another strategy than ``kfac``, for
        instance ``BottomConfig(reduction=0.2)`` or ``UniformConfig``; its own ``reduction`` counts then.
    :param factors: how they are stored, ``plain`` or ``pivoted`` (the same function in fewer parameters).
    :param distill, finetune: the training of the factors, local updates and then the whole model, where it is not to be
        the recommended one: on the dense model's logits, or by local updates where the model predicts no next token.
    :param init, loss, data: the other configurations of a run, where the recommended ones are not wanted.
    :param seed: of torch's random numbers.
    :return: the model, compressed, in evaluation mode; every parameter may be trained further.
    :raises ConfigError: for a request out of reach, or too little text, before the model is touched.
    :raises DivergedError: for a loss that is not finite.
    """
    _check(model)
    form, init = _form(factors), init or KfacConfig()
    strategy = strategy or KfacRanksConfig(reduction=reduction)
    shape = model_shape(model, targets).factored(form)
    blocks = _calibration(model, texts, tokenizer, data or _data_config(tokens, seq_len), exact=tokens is not None)
    student, ranks = _start(model, shape, blocks, strategy, init, form=form, seed=seed, progress=progress)
    if distill is None and finetune is None:
        distill, finetune = _recommended_training(model)
    if distill is not None:
        loss = loss or LossConfig(inputs=StudentInputs.teacher_student)
        distil_blocks(student, blocks, distill, loss, LoopContext(progress=progress))
        student.check_finite()
    compressed = student.settle() if finetune is None else _tuned(student, blocks, finetune, seed, progress)
    compressed.requires_grad_(True)
    mark(compressed, low_rank_config(compressed, ranks, without_bias=not init.keep_bias))
    return compressed


def _check(model: Any) -> None:
    """Raise where a model cannot be compressed here, before anything is touched."""
    if any(isinstance(module, LowRank) for module in model.modules()):
        raise ConfigError("model: is compressed already")
    method = quantization_of(model.config)
    if method is not None or getattr(model, "is_quantized", False):
        raise ConfigError(f"model: its weights are quantized ({method}); load the original ones, or dequantize() them")
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"model: a {type(model).__name__} is no transformers model; of PEFT's, merge_and_unload() first"
        )
    with unreadable("model: cannot be compressed"):
        check_finite(model)
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


def _start(
    model: Any,
    shape: ModelShape,
    blocks: Calibration,
    strategy: StrategyConfig,
    init: InitConfig,
    *,
    form: FactorForm,
    seed: int,
    progress: bool,
) -> tuple[Student, Mapping[str, int]]:
    """Plan ranks and put a start of that rank in the place of each chosen matrix."""
    with _between(strategy) as cache:
        options: dict[str, Any] = {"form": form, "cache": cache, "progress": progress}

        def spectra(names: Sequence[str]) -> Mapping[str, Sequence[float]]:
            return plan_spectra(model.eval(), names, blocks, strategy, init, **options)[0]

        plan = make_plan(shape, strategy, spectra)
        torch.manual_seed(seed)
        return Student(model, start_factors(model.eval(), plan.ranks, blocks, init, **options)), plan.ranks


@contextmanager
def _between(strategy: StrategyConfig) -> Iterator[FactorCache | None]:
    """Keep spectra on the disk from the plan to the start, of a strategy that plans by them."""
    if not strategy.from_spectra:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lillama-") as folder:
        yield FactorCache(Cache(Path(folder)), "the model")


def _tuned(student: Student, blocks: Calibration, config: FinetuneConfig, seed: int, progress: bool) -> Any:
    """Settle a student and fine-tune it, beside the dense model where it learns from that."""
    teacher = dense_teacher(student) if config.objective is Objective.kl else None
    torch.manual_seed(seed)
    tuned = TrainableModel(student.settle(), config)
    fine_tune(tuned, blocks, config, LoopContext(progress=progress), teacher=teacher)
    return tuned.settle()


def _recommended_training(model: Any) -> tuple[DistillConfig | None, FinetuneConfig | None]:
    """Return the training that follows the start: on the logits where the model predicts a next token."""
    predicts = task_of_architecture(model.config) is not Task.masked_lm
    return (None, _on_the_logits()) if predicts else (_local(), None)


def _on_the_logits() -> FinetuneConfig:
    """``finetune=kl``."""
    cosine = LearningRate.cosine
    return FinetuneConfig(
        objective=Objective.kl,
        train=Tune.factors,
        embedding=False,
        lr=6e-5,
        lr_schedule=cosine,
        warmup=0.05,
        batch_size=2,
    )


def _local() -> DistillConfig:
    """``distill=recommended``."""
    return DistillConfig(batch_size=1, lr=3e-4, lr_schedule=LearningRate.cosine, warmup=0.05)


def _data_config(tokens: int | None, seq_len: int) -> DataConfig:
    return DataConfig(source=Source.local, path="texts", tokens=tokens, seq_len=seq_len)


def _calibration(
    model: Any, texts: Iterable[str | Mapping[str, Any]], tokenizer: Any, config: DataConfig, *, exact: bool
) -> Calibration:
    """Return the tokens of some texts, checked against what the model can read."""
    limits = model_limits(model)
    check_length("seq_len", config.seq_len, limits.text)
    if config.MAKES is not None:
        raise ConfigError(f"data: the texts are those that are given, and none are {config.MAKES.name}")
    if isinstance(texts, str | bytes | Mapping):
        raise ConfigError(
            f"texts: must be a list of texts, not one {'string' if isinstance(texts, str) else type(texts).__name__}"
        )
    given = [_row(text) for text in texts]
    rows = CheckedRows(ListedRows(given, "texts"))
    if config.invalid_rows is InvalidRows.refuse:
        for index in range(len(rows)):
            rows[index]
    made = blocks_up_to(config, rows, tokenizer)
    blocks = replace(made, mask_token=getattr(tokenizer, "mask_token_id", None))
    if exact and blocks.tokens < config.budget:
        raise ConfigError(f"tokens={config.tokens}: the texts hold only {blocks.tokens}; tokens=None takes all")
    check_calibration("texts", blocks, limits, tokenizer)
    return blocks


def _row(text: Any) -> Any:
    if isinstance(text, str):
        return {"text": text}
    return dict(text) if isinstance(text, Mapping) else text
