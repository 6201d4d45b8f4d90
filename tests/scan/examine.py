"""Carry one tiny model through all that a run does, and say how it ends."""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from lillama.config import DistillConfig, FeatureConfig, LossConfig, StudentInputs, Task, UniformConfig
from lillama.core.errors import ConfigError
from lillama.distill import LoopContext, distill
from lillama.distill.batch import LossSettings, learn_batch, make_learners, parts
from lillama.init import start_factors
from lillama.model.blocks import Blocks
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.calls import hidden_states
from lillama.model.checkpoint import check_saveable, load_checkpoint, save_checkpoint
from lillama.model.inputs import Batch, model_inputs
from lillama.model.student import Student
from lillama.model.surgery import blank_modules
from lillama.model.targets import ModelShape, model_shape
from lillama.model.task import AUTO_CLASSES
from lillama.strategy import make_plan
from lillama.strategy.plan import RankPlan
from tests.checkpoints import stored_parameters
from tests.families import FixedBatch
from tests.scan.shrink import SPECIAL, VOCABULARY, tiny_configuration

LARGEST = 8_000_000  # parameters; a family whose configuration cannot be made smaller is not run
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@dataclass(slots=True)
class Finding:
    """How a family ends: ``compresses``, ``refused``, ``not run`` (transformers cannot), ``traceback`` or ``wrong``."""

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
    finding.because = finding.because.replace(str(folder), folder.name)
    return finding


def _examine(finding: Finding, task: Task, family: str, changes: Mapping[str, Any], folder: Path) -> None:
    try:
        model, meta = built(task, family, changes)
    except Exception:  # noqa: BLE001 - each family's classes check in their own way
        _step(lambda: _check_at_full_size(task, family))
        model, meta = _attempt("build", lambda: built(task, family, changes))
    shape = _step(lambda: model_shape(meta))
    batch = _step(lambda: batch_of(model))
    inputs = _step(lambda: model_inputs(model, batch)).arguments
    _attempt("run", lambda: model(**inputs))
    plan = _step(lambda: _plan(finding, shape))
    finding.dense, finding.planned = plan.dense_parameters, plan.parameters
    finding.stay_dense = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in [*shape.idle, *shape.shared]))
    _step(lambda: _check_shapes(shape, model_shape(model)))
    _step(lambda: check_saveable(model, byte_tokenizer()))
    compressed = _step(lambda: _compressed_if_need_be_whole(finding, model, plan, batch))
    finding.saved = _step(lambda: _saved(model, compressed, plan, inputs, folder))


def _plan(finding: Finding, shape: ModelShape) -> RankPlan:
    """Take a fifth away, or where less can be cut (experts without linears), a little."""
    try:
        return make_plan(shape, UniformConfig(reduction=0.2))
    except ConfigError as error:
        if "out of reach" not in str(error):
            raise
        finding.because = f"by 2%: {error}"
        return make_plan(shape, UniformConfig(reduction=0.02))


def _compressed_if_need_be_whole(finding: Finding, model: Any, plan: RankPlan, batch: Batch) -> Any:
    """Compress on a padded batch; where padding cannot be told, and that is said, on whole sequences."""
    try:
        return _compressed(model, plan, batch)
    except ConfigError as error:
        if "padding" not in str(error):
            raise
        finding.because = f"without padding: {' '.join(str(error).split())}"
        return _compressed(model, plan, replace(batch, mask=None))


def built(task: Task, family: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Make a family's tiny model with random weights, and the same one on the meta device."""
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
        for name, parameter in model.named_parameters():
            if name in _never_saved(model):
                continue
            parameter.nan_to_num_(0.0).clamp_(-1, 1).add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False), meta


def _check_at_full_size(task: Task, family: str) -> None:
    """Look at the shape of a family's default size, without weights: it may be refused whatever its size."""
    try:
        with torch.device("meta"):
            model = AUTO_CLASSES[task].from_config(AutoConfig.for_model(family))
    except Exception:  # noqa: BLE001 - as above
        return
    model_shape(model)


def _never_saved(model: Any) -> dict[str, int]:
    """The sizes of parameters that transformers makes anew at loading (tables of sines), by name."""
    ignored = "|".join(getattr(model, "_keys_to_ignore_on_save", None) or ["(?!)"])
    return {name: p.numel() for name, p in model.named_parameters() if re.search(ignored, name)}


def batch_of(model: Any, size: int = 3, length: int = 16) -> Batch:
    """Random tokens, one sequence shorter, and sound for a model that hears it as Whisper does."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL, VOCABULARY - 8, (size, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length] * (size - 1) + [length - 3])[:, None]
    if model.main_input_name != "input_features":
        return Batch(ids, mask)
    frames = 2 * model.config.max_source_positions
    return Batch(ids, None, torch.randn(size, model.config.num_mel_bins, frames, generator=generator))


def _check_shapes(planned: ModelShape, loaded: ModelShape) -> None:
    if planned != loaded:
        raise _Ends("wrong", f"planned on {planned.parameters:,} parameters, loaded are {loaded.parameters:,}")


def _compressed(model: Any, plan: RankPlan, batch: Batch) -> Any:
    _check_merging(model, plan, batch)
    student = Student(model, start_factors(model, plan.ranks, FixedBatch(batch), FeatureConfig()))
    loss = LossConfig(inputs=StudentInputs.teacher_student)
    distill(student, Rows(batch), DistillConfig(batch_size=1, lr=1e-4), loss, LoopContext(progress=False))
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
            learners = make_learners(student, config, LossConfig(inputs=StudentInputs.teacher_student))
            learn_batch(student.teacher_blocks, learners, part, LossSettings(StudentInputs.teacher_student))
            found.append([p.grad for learner in learners.values() for p in learner.parameters])
            for learner in learners.values():
                learner.drop_gradients()
        for joined, apart in zip(*found, strict=True):
            _check_close(joined, apart, f"gradients of merged calls, {rows} rows")


@torch.no_grad()
def _check_stream(student: Student, batch: Batch) -> None:
    """What flows beside the teacher is what the compressed model itself computes."""
    blocks = student.teacher_blocks
    learners = make_learners(student, DistillConfig(), LossConfig(inputs=StudentInputs.teacher_student))
    boundary = learn_batch(blocks, learners, batch, LossSettings(StudentInputs.teacher_student)).boundary
    for learner in learners.values():
        learner.drop_gradients()
    last, seen = max(index for index in learners if index < blocks.head), []
    with student.in_place() as compressed:
        hook = Blocks(compressed)[last].register_forward_hook(lambda _m, _a, output: seen.append(output))
        compressed(**model_inputs(compressed, batch).arguments)
        hook.remove()
    own = hidden_states(seen[0])
    _check_close(boundary.student[blocks.place(last)], own, "the student's hidden states beside the teacher's")


def _saved(dense: Any, model: Any, plan: RankPlan, inputs: Mapping[str, Any], folder: Path) -> int:
    save_checkpoint(model, byte_tokenizer(), folder, plan={"ranks": plan.ranks}, card="#")
    try:
        loaded = load_checkpoint(folder, auto=None, attn_implementation="eager")
    except ConfigError as error:
        _attempt("load", lambda: _loaded_again(dense, folder.with_name("dense")))
        raise _Ends("wrong", f"what is saved does not load: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        _check_close(loaded(**inputs).logits, model(**inputs).logits, "logits after loading")
    saved = stored_parameters(folder, loaded) + sum(_never_saved(loaded).values())
    counts = {"planned": plan.parameters, "saved": saved, "loaded": sum(p.numel() for p in loaded.parameters())}
    if len(set(counts.values())) > 1:
        raise _Ends("wrong", f"parameters: {counts}")
    return saved


def _loaded_again(dense: Any, folder: Path) -> None:
    """Save and load the dense model, by transformers alone."""
    dense.save_pretrained(folder)
    type(dense).from_pretrained(folder)


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


def _attempt(what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        raise _Ends("not run", f"transformers cannot {what} it: {_named(error)}") from error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]
