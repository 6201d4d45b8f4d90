"""Build what is measured: the teacher as far as needed, and a student with random factors (a start costs no time)."""

import contextlib
import ctypes
import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lillama.bench.needed import names_of
from lillama.config import RunConfig, Stage, Weights
from lillama.core.errors import ConfigError
from lillama.core.machine import device_peak, host_peak, reset_peaks
from lillama.model.source import ModelSource
from lillama.model.student import Student, random_student
from lillama.model.targets import ModelShape, model_shape
from lillama.strategy.plan import RankPlan

LAYERS = "num_hidden_layers"


@dataclass(frozen=True, slots=True)
class Built:
    """A student on its device; ``whole`` is the shape of the plan's model, ``shape`` that of what was built."""

    student: Student
    ranks: Mapping[str, int]
    shape: ModelShape
    whole: ModelShape

    @property
    def truncated(self) -> bool:
        """Tell whether the teacher lacks blocks of the whole model."""
        return self.shape.blocks < self.whole.blocks

    @property
    def device(self) -> torch.device:
        """Return the device that computes."""
        return next(self.student.teacher.parameters()).device


def build(config: RunConfig, source: ModelSource, plan: RankPlan) -> Built:
    """Return the teacher and a student whose first ``config.bench.blocks`` blocks of the plan are compressed.

    :raises ConfigError: for a model that cannot be loaded, or some of the blocks where an end is compressed.
    """
    whole = model_shape(source.meta, config.model.targets).factored(plan.factors)
    touched = plan.blocks[: config.bench.blocks]
    ends = [index for index in plan.blocks if not 0 <= index < whole.blocks]
    if ends and len(touched) < len(plan.blocks):
        raise ConfigError("bench.blocks: an embedding or a head is compressed, whose share is not known; give null")
    chosen = names_of(whole, touched)
    ranks = {name: rank for name, rank in plan.ranks.items() if name in chosen}
    if not config.bench.literal and _may_be_cut(config, source.meta, whole, touched):
        kept = cut(config.model.architecture, source.meta.config, max(touched) + 1)
        source = replace(source, config=replace(source.config, architecture=kept))
    teacher = source.load(seed=config.seed)
    shape = model_shape(teacher).factored(plan.factors)
    return Built(random_student(teacher, ranks, plan.factors), ranks, shape, whole)


def _may_be_cut(config: RunConfig, meta: Any, whole: ModelShape, touched: tuple[int, ...]) -> bool:
    own = config.model.weights is Weights.random and bool(config.model.architecture)
    inside = min(touched) >= 0 and max(touched) < whole.blocks
    return own and inside and not meta.config.is_encoder_decoder


def cut(architecture: Mapping[str, Any], known: Any, layers: int) -> dict[str, Any]:
    """Return an architecture with its first layers only; what it says of each layer is cut too.

    :param known: its transformers configuration, which says what the family calls the number of layers.
    """
    alias, before = known.attribute_map.get(LAYERS, LAYERS), getattr(known, LAYERS)
    kept = {key: value for key, value in architecture.items() if key not in (alias, LAYERS)}
    each = {key: value[:layers] for key, value in kept.items() if isinstance(value, list) and len(value) == before}
    return {**kept, **each, alias: layers}


def clean_start(config: RunConfig) -> int:
    """Drop what earlier cells of a sweep left in this process, and its peaks; the host memory that stays, in bytes.

    Where other stages of this run came before, the peaks are theirs too, and are kept.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
    if set(config.stages) <= {Stage.plan, Stage.bench}:
        reset_peaks()
    return host_peak()


def memory(built: Built, plan: RankPlan, before: int) -> dict[str, Any]:
    """Bytes: of the model that was built, of the whole one, of the factors, and the peaks until now.

    :param before: what :func:`clean_start` gave.
    """
    size = built.student.dtype.itemsize
    return {
        "built": built.shape.parameters * size,
        "model": plan.dense_parameters * size,
        "factors": sum(parameter.numel() for parameter in built.student.factor_parameters()) * size,
        "host_before": before,
        "peak_host": host_peak(),
        "peak_device": device_peak() if built.device.type == "cuda" else None,
    }


def left_out(built: Built, plan: RankPlan) -> list[str]:
    """Name what the peaks of memory lack because it was not built."""
    said = []
    if built.truncated:
        first, last = built.shape.blocks, built.whole.blocks - 1
        said.append(f"peak memory leaves out the teacher's blocks {first} to {last}, which nothing runs")
    missing = len(plan.blocks) - len(built.student.blocks)
    if missing > 0:
        said.append(f"peak memory leaves out {missing} of the plan's {len(plan.blocks)} student blocks")
    return said
