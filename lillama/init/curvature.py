"""Take second moments on both sides of matrices: of their inputs, and of the loss's gradients at their outputs.

A model whose blocks form a plain chain is streamed: one forward pass keeps what flows into every block, then the
blocks are run again from the last one down, each with the gradient of its output. One block and its moments are held at
a time, beside the hidden states of the calibration tokens in host memory or on disk. A model whose blocks share more
than hidden states (an encoder's output, a table that one block makes for the others) is run whole, by plain autograd.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from lillama.algebra.moments import MOMENT_BYTES, moment_bytes, within_limit
from lillama.config import KfacConfig, OutputMoment
from lillama.data.calibration import Calibration
from lillama.errors import ConfigError, DivergedError
from lillama.init.labels import CalibrationLoss
from lillama.init.moments import InputCollector, InputMoment
from lillama.init.outputs import OutputCollector, OutputMoments
from lillama.model.activations import ActivationStore
from lillama.model.blocks import EMBEDDING, Blocks, call_after, hidden_states, output_after, run_blocks
from lillama.model.inputs import Batch, model_inputs
from lillama.model.surgery import matrix
from lillama.model.visit import VISIT, at_work
from lillama.runtime import tied_head

log = logging.getLogger(__name__)
BATCH = 2  # sequences at a time: the logits of many are large


class Curvature(NamedTuple):
    """The moments of one matrix: of its inputs, and of the gradients at its outputs.

    ``head`` are those of the prediction head that is tied to an embedding.
    """

    inputs: InputMoment
    outputs: OutputMoments
    head: "Curvature | None" = None


@dataclass(slots=True)
class LossMean:
    """The mean loss per predicted token of the calibration tokens, in nats; filled in by the first pass over them."""

    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """The mean; zero before anything was predicted."""
        return self.total / max(self.count, 1)


def curvatures(
    model: nn.Module,
    names: Sequence[str],
    data: Calibration,
    config: KfacConfig,
    *,
    mean: LossMean,
    scratch: Path | None = None,
    limit: int = MOMENT_BYTES,
    progress: bool = False,
) -> Iterator[tuple[str, Curvature]]:
    """Yield the moments of the named matrices, those of one block or one group after the other.

    :param data: the calibration tokens, all of which count. :param mean: takes the loss of the dense model on them.
    :param scratch: a folder for hidden states; None keeps them in host memory.
    :param limit: bytes of moments that are held at a time: a group of matrices has a pass of its own.
    :raises DivergedError: for a loss that is not finite.
    """
    blocks = Blocks(model)
    loss = CalibrationLoss(model, config.labels, getattr(data, "mask_token", None), config.seed)
    work = _Work(blocks, data, config.output, loss, mean, limit, progress)
    if is_plain_chain(blocks, next(iter(data.batches(1, work.device)))):
        yield from _streamed(work, names, scratch)
        return
    if work.device.type != "cpu" and any(hasattr(blocks[index], VISIT) for index in range(len(blocks))):
        raise ConfigError("model.offload=true: init=kfac runs a model of this family whole; set model.offload=false")
    log.info("init=kfac: the blocks share more than hidden states, so the model is run whole")
    yield from _whole(work, names)


def is_plain_chain(blocks: Blocks, batch: Batch) -> bool:
    """Tell whether nothing but hidden states leads from one block to another, by a few tokens with gradients."""
    if len(blocks.stacks) > 1:
        return False
    short = Batch(batch.ids[:1, :8], None if batch.mask is None else batch.mask[:1, :8])
    found: list[bool] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        beside = [*args[1:], *(value for key, value in kwargs.items() if key != "hidden_states" or args)]
        found.append(any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(beside)))

    hooks = [blocks[index].register_forward_pre_hook(look, with_kwargs=True) for index in range(len(blocks))]
    hooks.append(blocks[EMBEDDING].register_forward_hook(_require_gradient))
    try:
        with torch.enable_grad():
            blocks.model(**model_inputs(blocks.model, short).arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return not any(found)


@dataclass(frozen=True, slots=True)
class _Work:
    """The model and the tokens of which moments are taken, and how."""

    blocks: Blocks
    data: Calibration
    output: OutputMoment
    loss: CalibrationLoss
    mean: LossMean
    limit: int
    progress: bool

    @property
    def device(self) -> torch.device:
        return next(self.blocks.model.parameters()).device

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Every batch with its number."""
        return enumerate(self.data.batches(BATCH, self.device))

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """The names in groups whose moments fit into the limit together."""
        return within_limit({name: self._bytes(name) for name in names}, self.limit)

    def _bytes(self, name: str) -> int:
        *experts, out_features, in_features = matrix(self.blocks.model, name).shape
        full = self.output is OutputMoment.full and self.blocks.index_of(name) not in (EMBEDDING, self.blocks.head)
        both = moment_bytes(in_features) + (moment_bytes(out_features) if full else 0)
        return both * (experts[0] if experts else 1)

    def backward(self, logits: Tensor, targets: Tensor, number: int) -> None:
        """Run a batch's loss backward."""
        loss = self.loss.summed(logits, targets, number)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"init=kfac: the loss of calibration batch {number} is {value}")
        self.mean.total += value
        self.mean.count += int((targets >= 0).sum())
        loss.backward()


class _Collectors:
    """The moments of some matrices on both sides, while their hooks are registered."""

    def __init__(self, work: _Work) -> None:
        self.inputs = InputCollector(work.blocks)
        self.outputs = OutputCollector(self.inputs, work.output)
        self._model = work.blocks.model

    @contextmanager
    def of(self, names: Sequence[str]) -> Iterator[None]:
        """Collect the moments of these matrices within."""
        hooks = [*self.inputs.hooks(names), *self.outputs.hooks(names)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, batch: Batch) -> None:
        """Begin a batch: which of its positions count."""
        self.inputs.inputs = model_inputs(self._model, batch)
        self.inputs.latest = None

    def taken(self, name: str, head: Curvature | None = None) -> Curvature:
        """Hand over the moments of a matrix."""
        return Curvature(self.inputs.moments[name], self.outputs.moments.pop(name), head)


def _whole(work: _Work, names: Sequence[str]) -> Iterator[tuple[str, Curvature]]:
    """Run the whole model forward and backward, once for each group of matrices."""
    blocks = work.blocks
    for group in work.groups(names):
        collectors, heads = _Collectors(work), _heads(blocks, group)
        leaves = [
            blocks[stack.indices[0]].register_forward_pre_hook(_leaf, with_kwargs=True) for stack in blocks.stacks
        ]
        if EMBEDDING in map(blocks.index_of, group):
            leaves.append(blocks[EMBEDDING].register_forward_hook(_require_gradient, prepend=True))
        try:
            with collectors.of([*group, *heads.values()]), _bar(work, 1) as bar:
                for number, batch in work.batches():
                    read, arguments, targets = work.loss.prepare(batch, number)
                    collectors.begin(read)
                    with torch.enable_grad():
                        work.backward(blocks.model(**arguments).logits, targets, number)
                    bar.update(batch.tokens)
        finally:
            for hook in leaves:
                hook.remove()
        for name in group:
            yield name, collectors.taken(name, collectors.taken(heads[name]) if name in heads else None)


def _streamed(work: _Work, names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, Curvature]]:
    """Run the blocks forward once, then each again from the last one down, with its moments."""
    blocks, setting = work.blocks, "init.place=disk"
    by_block: dict[int, list[str]] = {}
    for name in names:
        by_block.setdefault(blocks.index_of(name), []).append(name)
    first = min(max(min(by_block), 0), len(blocks) - 1)
    hidden = ActivationStore(None if scratch is None else scratch / "hidden", work.device, setting=setting)
    gradients = ActivationStore(None if scratch is None else scratch / "gradients", work.device, setting=setting)
    stream = _Stream(work, hidden, gradients)
    with _bar(work, 2 + len(blocks) - first) as bar:
        stream.forward(first, bar)
        heads = _heads(blocks, names)
        top = [name for index in (blocks.head,) for name in by_block.get(index, [])]
        at_head = stream.top([*top, *heads.values()], bar)
        for name in top:
            yield name, at_head.taken(name)
        for index in range(len(blocks) - 1, first - 1, -1):
            yield from stream.block(
                index, by_block.get(index, []), bar, passes_on=index > first or EMBEDDING in by_block
            )
    for name in by_block.get(EMBEDDING, []):
        head = at_head.taken(heads[name]) if name in heads else None
        yield name, stream.embedding(name, head)
    hidden.clear()
    gradients.clear()


class _Stream:
    """The passes of a streamed run.

    :param hidden: keeps what every block gave back, by block and batch. :param gradients: keeps the gradient of the
        loss at the block that is next, by batch.
    """

    def __init__(self, work: _Work, hidden: ActivationStore, gradients: ActivationStore) -> None:
        self.work, self.blocks, self.hidden, self.gradients = work, work.blocks, hidden, gradients
        self.count = sum(1 for _ in work.batches())

    def forward(self, first: int, bar: tqdm) -> None:
        """Keep what all blocks give back from the one below ``first`` on."""
        wanted = range(max(first - 1, 0), len(self.blocks))
        for number, batch in self.work.batches():
            _, arguments, _ = self.work.loss.prepare(batch, number)

            def keep(call: Any, number: int = number) -> None:
                self.hidden[self._key(call.index, number)] = call.result

            run_blocks(self.blocks, arguments, wanted=wanted, on_block=keep)
            bar.update(batch.tokens)

    def top(self, names: Sequence[str], bar: tqdm) -> _Collectors:
        """Run what follows the last block forward and backward; the moments of the named heads."""
        collectors, last = _Collectors(self.work), len(self.blocks) - 1
        with collectors.of(names):
            for number, batch in self.work.batches():
                read, arguments, targets = self.work.loss.prepare(batch, number)
                collectors.begin(read)
                leaf, result = _with_leaf(self.hidden[self._key(last, number)])
                with torch.enable_grad():
                    output = output_after(self.blocks, arguments, given={0: result})
                    self.work.backward(output.logits, targets, number)
                self.gradients[number] = leaf.grad
                self.hidden.drop(self._key(last, number))
                bar.update(batch.tokens)
        return collectors

    def block(self, index: int, names: Sequence[str], bar: tqdm, *, passes_on: bool) -> Iterator[tuple[str, Curvature]]:
        """Run one block forward and backward; yield the moments of its matrices, and leave the gradient of its input.

        :param passes_on: whether anything below it needs that gradient.
        """
        groups = self.work.groups(names) if names else [[]]
        for position, group in enumerate(groups):
            collectors, last = _Collectors(self.work), position == len(groups) - 1
            if not group and not passes_on:
                continue
            with collectors.of(group):
                for number, batch in self.work.batches():
                    gradient = self._through(index, number, batch, collectors)
                    if last:
                        self.gradients[number] = gradient
                        self.hidden.drop(self._key(index - 1, number))
                        bar.update(batch.tokens)
            for name in group:
                yield name, collectors.taken(name)

    def embedding(self, name: str, head: Curvature | None) -> Curvature:
        """Run what lies below the first block forward and backward; the moments of the embedding."""
        collectors = _Collectors(self.work)
        leaf = self.blocks[EMBEDDING].register_forward_hook(_require_gradient, prepend=True)
        try:
            with collectors.of([name]):
                for number, batch in self.work.batches():
                    read, arguments, _ = self.work.loss.prepare(batch, number)
                    collectors.begin(read)
                    call = call_after(self.blocks, arguments, given={}, until=0, gradients=True)
                    call.hidden.backward(self.gradients[number])
        finally:
            leaf.remove()
        return collectors.taken(name, head)

    def _through(self, index: int, number: int, batch: Batch, collectors: _Collectors) -> Tensor:
        """Run a block on one batch, and the gradient of its output back through it."""
        read, arguments, _ = self.work.loss.prepare(batch, number)
        collectors.begin(read)
        given = {0: self.hidden[self._key(index - 1, number)]} if index > 0 else {}
        call = call_after(self.blocks, arguments, given=given, until=index)
        block, leaf = self.blocks[index], call.hidden.detach().requires_grad_()
        with at_work(block):  # its weights are needed on the way back, too
            with torch.enable_grad():
                output = call.replay(block, leaf)
            output.backward(self.gradients[number])
        assert leaf.grad is not None
        return leaf.grad

    def _key(self, index: int, number: int) -> int:
        return index * self.count + number


def _heads(blocks: Blocks, names: Sequence[str]) -> dict[str, str]:
    """Name the heads that are tied to an embedding among the matrices, by the embedding."""
    found = {name: tied_head(blocks.model, name) for name in names if blocks.index_of(name) == EMBEDDING}
    return {name: head for name, head in found.items() if head is not None}


def _with_leaf(result: Any) -> tuple[Tensor, Any]:
    """What a block gave back, with hidden states that take a gradient; they come first."""
    leaf = hidden_states(result).detach().requires_grad_()
    return leaf, ((leaf, *result[1:]) if isinstance(result, tuple) else leaf)


def _leaf(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cut the graph below a block that has none, so that gradients reach it."""

    def leaf(hidden: Tensor) -> Tensor:
        return hidden if hidden.requires_grad else hidden.detach().requires_grad_()

    if args:
        return (leaf(args[0]), *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, {**kwargs, name: leaf(kwargs[name])}


def _require_gradient(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


def _bar(work: _Work, passes: int) -> tqdm:
    return tqdm(total=passes * work.data.tokens, desc="curvature", unit="tok", disable=not work.progress)
