"""The models whose speed is compared, each alone on the device while it is at work.

What one variant needs and the others do not (the blocks that a student replaces, another model) waits in host memory
meanwhile, so that peaks of device memory are the variant's own; what they share stays. On a CPU nothing moves.
"""

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lillama.config import FactorForm
from lillama.core.results import COMPRESSED, DENSE
from lillama.model.blocks import Blocks
from lillama.model.lowrank import FactorPair, LowRank, LowRankExperts, is_fused_experts
from lillama.model.lowrank.lillama_modules import Expansion
from lillama.model.offload import offload_blocks
from lillama.model.source import ModelSource
from lillama.model.student import Student
from lillama.model.surgery import blank_modules

CPU, META = torch.device("cpu"), torch.device("meta")
OF_PRODUCTS = (nn.Linear, Conv1D, nn.Embedding, Expansion, FactorPair, LowRankExperts)
GIVEN = "_is_hf_initialized"  # transformers leaves alone what carries this mark


@dataclass(frozen=True, slots=True)
class Variant:
    """A model by its role, ``dense`` or ``compressed``.

    Entering ``at_work()`` gives it in evaluation mode on its device; leaving puts everything back. Entering may raise
    ``torch.OutOfMemoryError``: what it had taken is free again then.
    """

    role: str
    at_work: Callable[[], AbstractContextManager[nn.Module]]


def student_variants(student: Student) -> list[Variant]:
    """Yield the teacher as it is, and with the student's blocks in place."""
    everything = tensors_of(student.teacher, *student.blocks.values())

    @contextmanager
    def compressed() -> Iterator[nn.Module]:
        with student.in_place() as model, _alone(model, everything):
            yield model

    return [Variant(DENSE, partial(_alone, student.teacher, everything)), Variant(COMPRESSED, compressed)]


def model_variants(models: Mapping[str, nn.Module]) -> list[Variant]:
    """Models that were loaded, by role."""
    everything = tensors_of(*models.values())
    return [Variant(role, partial(_alone, model, everything)) for role, model in models.items()]


def random_variants(
    source: ModelSource, ranks: Mapping[str, int], form: FactorForm = FactorForm.plain
) -> list[Variant]:
    """The configured model and one with these ranks, at their real size with random weights (see :func:`_drawn`).

    Each is made on the device when its turn comes and let go of after it: the two never exist at once, and none in
    host memory (but the blocks of a model with ``offload``).

    :param ranks: by target, as a plan has them. :param form: how the factors are stored.
    """
    at_work = partial(_drawn, source, form)
    return [Variant(DENSE, partial(at_work, {})), Variant(COMPRESSED, partial(at_work, ranks))]


def tensors_of(*models: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers; what is tied comes once."""
    return list({id(tensor): tensor for tensor in chain.from_iterable(map(_tensors, models))}.values())


def release() -> None:
    """Give back memory that nothing uses, of the device and of the host."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())


@contextmanager
def _alone(model: nn.Module, everything: Sequence[Tensor]) -> Iterator[nn.Module]:
    """The model in evaluation mode; what is not its own of ``everything`` is in host memory."""
    needed = {id(tensor) for tensor in _tensors(model)}
    idle = [(tensor, tensor.device) for tensor in everything if id(tensor) not in needed and tensor.device != CPU]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for tensor, _ in idle:
            tensor.data = tensor.data.to(CPU)
        if idle:
            release()
        yield model.eval()
    finally:
        for tensor, home in idle:
            tensor.data = tensor.data.to(home)
        for module, training in modes:
            module.training = training


@contextmanager
def _drawn(source: ModelSource, form: FactorForm, ranks: Mapping[str, int]) -> Iterator[nn.Module]:
    """A model with random weights, the same in every turn; with ranks, low-rank modules in the place of those matrices.

    It holds none when the context ends, whoever holds it.
    """
    model, device = _empty(source, form, ranks), source.device
    try:
        _put(model, CPU if source.config.offload else device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            _draw(model)
        if source.config.offload:
            blocks = Blocks(model)
            offload_blocks(model, [blocks[index] for index in range(len(blocks))], device)
        yield model
    finally:
        _put(model, META)
        release()


def _empty(source: ModelSource, form: FactorForm, ranks: Mapping[str, int]) -> nn.Module:
    """Return the model in the run's dtype, without weights."""
    model = source.made(META, dtype=source.dtype)
    if ranks:
        model = Student(model, blank_modules(model, ranks, form)).settle()
    return model.eval().requires_grad_(False)


def _put(model: nn.Module, device: torch.device) -> None:
    """Give a model tensors on a device whose values are yet to be set; what is tied stays tied.

    ``nn.Module.to_empty`` would make two of what is tied.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old ones, so that their ids stay theirs
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None or tensor.device == device:
                    continue
                if id(tensor) not in made:
                    new = torch.empty_like(tensor, device=device, requires_grad=False)
                    parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = (tensor, nn.Parameter(new, requires_grad=False) if parameter else new)
                own[name] = made[id(tensor)][1]  # type: ignore[assignment]


@torch.no_grad()
def _draw(model: Any) -> None:
    """Set all values on the device that they are on.

    Matrices of products are normal with a standard deviation of fan_in**-0.5, so that activations stay finite at any
    depth. Everything else (norms, biases, rotary tables, the state space of a Mamba) is as transformers begins a
    training with; it sets buffers that no checkpoint holds in the same place when it loads one.
    """
    for module in model.modules():
        products = isinstance(module, OF_PRODUCTS) or is_fused_experts(module)
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.dim() > 1:
                tensor.normal_(std=tensor.shape[-1] ** -0.5)
                setattr(tensor, GIVEN, products)
            else:
                tensor.fill_(int(name == "weight"))  # for a model with code of its own, whose norms nobody else sets
        if isinstance(module, LowRank) and (order := list(module.orders())):
            for pivots, rest in zip(order[::2], order[1::2], strict=True):
                pivots.copy_(torch.arange(pivots.shape[-1]))
                rest.copy_(torch.arange(rest.shape[-1]) + pivots.shape[-1])
    model.initialize_weights()
