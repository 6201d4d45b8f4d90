"""Carry one tiny model through all that a run does, and say how it ends."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lillama.config import DistillConfig, FeatureConfig, Inputs, LossConfig, Task, UniformConfig
from lillama.distill import Session, distill
from lillama.distill.batch import Lesson, learn_batch, make_learners, parts
from lillama.errors import ConfigError
from lillama.init import start_factors
from lillama.model.blocks import Blocks
from lillama.model.calls import hidden_states
from lillama.model.checkpoint import load_checkpoint, save_checkpoint
from lillama.model.inputs import Batch, model_inputs
from lillama.model.load import byte_tokenizer
from lillama.model.student import Student
from lillama.model.surgery import blank_modules
from lillama.model.targets import ModelShape, model_shape
from lillama.model.task import AUTO_CLASSES
from lillama.strategy import make_plan
from lillama.strategy.plan import RankPlan
from tests.checkpoints import stored_parameters
from tests.families import FixedBatch
from tests.scan.shrink import SPECIAL, VOCABULARY, tiny_configuration

LARGEST = 5_000_000  # parameters; a family whose configuration cannot be made smaller is not run
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@dataclass(slots=True)
class Finding:
    """How a family ends: ``compresses``, ``refused``, ``not built``, ``not fed``, ``traceback`` or ``wrong``."""

    task: str
    family: str
    ends: str = "compresses"
    because: str = ""
    dense: int = 0
    planned: int = 0
    saved: int = 0
    stay_dense: list[str] = field(default_factory=list)


class Rows(FixedBatch):
    """A batch that is read in parts."""

    __slots__ = ()

    def batches(self, size: int, device: Any) -> Iterator[Batch]:
        return parts(self.batch, size)


class _Ends(Exception):  # noqa: N818 - control flow, not an error
    """The end of a family that does not compress."""


def examine(task: Task, family: str, changes: Mapping[str, Any], folder: Path, *, traces: bool = False) -> Finding:
    """Plan a fifth away, start, distil, save and load a family's tiny model; compare outputs and counts."""
    finding = Finding(task.name, family)
    try:
        _examine(finding, task, family, changes, folder)
    except _Ends as end:
        if traces:
            traceback.print_exception(end)
        finding.ends, finding.because = end.args
    return finding


def _examine(finding: Finding, task: Task, family: str, changes: Mapping[str, Any], folder: Path) -> None:
    model, meta = _attempt("not built", lambda: _built(task, family, changes))
    batch = batch_of(model)
    inputs = model_inputs(model, batch).arguments
    _attempt("not fed", lambda: model(**inputs))
    shape = _step(lambda: model_shape(meta))
    plan = _step(lambda: make_plan(shape, UniformConfig(reduction=0.2)))
    finding.dense, finding.planned = plan.dense_parameters, plan.parameters
    finding.stay_dense = [*shape.idle, *shape.shared]
    _step(lambda: _check_shapes(shape, model_shape(model)))
    compressed = _step(lambda: _compressed(model, plan, batch))
    finding.saved = _step(lambda: _saved(compressed, plan, inputs, folder))


def _built(task: Task, family: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    config = tiny_configuration(family, changes)
    auto = AUTO_CLASSES[task]
    with torch.device("meta"):
        meta = auto.from_config(config)
    size = sum(p.numel() for p in meta.parameters())
    if size > LARGEST:
        raise ValueError(f"its small configuration has {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0).clamp_(-1, 1).add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False), meta


def batch_of(model: Any, size: int = 3, length: int = 12) -> Batch:
    """Random tokens, one sequence shorter, and sound for a model that hears it as Whisper does."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL, VOCABULARY - 8, (size, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length] * (size - 1) + [length - 3])[:, None]
    if not hasattr(model.config, "num_mel_bins") or not hasattr(model.config, "max_source_positions"):
        return Batch(ids, mask)
    frames = 2 * model.config.max_source_positions
    return Batch(ids, None, torch.randn(size, model.config.num_mel_bins, frames, generator=generator))


def _check_shapes(planned: ModelShape, loaded: ModelShape) -> None:
    if planned != loaded:
        raise _Ends("wrong", f"planned on {planned.parameters:,} parameters, loaded are {loaded.parameters:,}")


def _compressed(model: Any, plan: RankPlan, batch: Batch) -> Any:
    _check_merging(model, plan, batch)
    student = Student(model, start_factors(model, plan.ranks, FixedBatch(batch), FeatureConfig()))
    loss = LossConfig(inputs=Inputs.teacher_student)
    distill(student, Rows(batch), DistillConfig(batch_size=1, lr=1e-4), loss, Session(progress=False))
    _check_stream(student, batch)
    student.check_finite()
    return student.settle()


def _check_merging(model: Any, plan: RankPlan, batch: Batch) -> None:
    """One call for the teacher's and the student's input gives the gradients of two; with one row and with several."""
    torch.manual_seed(1)
    for rows in (1, len(batch)):
        part, found = batch.rows(0, rows), []
        blank = blank_modules(model, plan.ranks)
        for module in blank.values():
            for factor in module.factor_parameters():
                nn.init.normal_(factor, std=0.2)
        for merge in (True, False):
            student = Student(model, blank)
            config = DistillConfig(merge=merge)
            learners = make_learners(student, config, LossConfig(inputs=Inputs.teacher_student))
            learn_batch(student.teacher_blocks, learners, part, Lesson(Inputs.teacher_student))
            found.append([p.grad for learner in learners.values() for p in learner.parameters])
            for learner in learners.values():
                learner.drop_gradients()
        for joined, apart in zip(*found, strict=True):
            _check_close(joined, apart, f"gradients of merged calls, {rows} rows")


@torch.no_grad()
def _check_stream(student: Student, batch: Batch) -> None:
    """What flows beside the teacher is what the compressed model itself computes."""
    blocks = student.teacher_blocks
    learners = make_learners(student, DistillConfig(), LossConfig(inputs=Inputs.teacher_student))
    edge = learn_batch(blocks, learners, batch, Lesson(Inputs.teacher_student)).edge
    for learner in learners.values():
        learner.drop_gradients()
    last, seen = max(index for index in learners if index < blocks.head), []
    with student.in_place() as compressed:
        hook = Blocks(compressed)[last].register_forward_hook(lambda _m, _a, output: seen.append(output))
        compressed(**model_inputs(compressed, batch).arguments)
        hook.remove()
    own = hidden_states(seen[0])
    _check_close(edge.student[blocks.place(last)], own, "the student's hidden states beside the teacher's")


def _saved(model: Any, plan: RankPlan, inputs: Mapping[str, Any], folder: Path) -> int:
    save_checkpoint(model, byte_tokenizer(), folder, plan={"ranks": plan.ranks}, card="#")
    loaded = load_checkpoint(folder, auto=None, attn_implementation="eager")
    with torch.no_grad():
        _check_close(loaded(**inputs).logits, model(**inputs).logits, "logits after loading")
    saved = stored_parameters(folder, loaded)
    counts = {"planned": plan.parameters, "saved": saved, "loaded": sum(p.numel() for p in loaded.parameters())}
    if len(set(counts.values())) > 1:
        raise _Ends("wrong", f"parameters: {counts}")
    return saved


def _check_close(found: Tensor | None, wanted: Tensor | None, of: str) -> None:
    if (found is None) != (wanted is None):
        raise _Ends("wrong", f"{of}: one is missing")
    if found is not None and wanted is not None and not torch.allclose(found, wanted, **CLOSE):
        raise _Ends("wrong", f"{of}: differ by {float((found - wanted).abs().max()):.2g}")


def _step(work: Callable[[], Any]) -> Any:
    """Do it: a ConfigError is a refusal in one line, any other error a traceback that a user would see."""
    try:
        return work()
    except ConfigError as error:
        raise _Ends("refused", " ".join(str(error).split())) from None
    except _Ends:
        raise
    except Exception as error:
        raise _Ends("traceback", _named(error)) from error


def _attempt(ends: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        raise _Ends(ends, _named(error)) from error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]
