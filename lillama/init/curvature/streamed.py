"""Take moments of a plain chain of blocks: forward once, then every block again from the last one down."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lillama.init.curvature.work import (
    Collectors,
    Curvature,
    CurvatureWork,
    progress_bar,
    require_gradient,
    tied_heads,
)
from lillama.model.activations import ActivationStore
from lillama.model.blocks import EMBEDDING
from lillama.model.calls import hidden_states
from lillama.model.inputs import Batch
from lillama.model.offload import at_work
from lillama.model.runs import call_after, output_after, run_blocks


def streamed(work: CurvatureWork, names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, Curvature]]:
    """Run the blocks forward once, then each again from the last one down, with its moments."""
    blocks, setting = work.blocks, "init.place=disk"
    by_block: dict[int, list[str]] = {}
    for name in names:
        by_block.setdefault(blocks.index_of(name), []).append(name)
    first = min(max(min(by_block), 0), len(blocks) - 1)
    hidden = ActivationStore(None if scratch is None else scratch / "hidden", work.device, setting=setting)
    gradients = ActivationStore(None if scratch is None else scratch / "gradients", work.device, setting=setting)
    stream = _Stream(work, hidden, gradients)
    with progress_bar(work, 2 + len(blocks) - first) as bar:
        stream.forward(first, bar)
        heads = tied_heads(blocks, names)
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

    def __init__(self, work: CurvatureWork, hidden: ActivationStore, gradients: ActivationStore) -> None:
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

    def top(self, names: Sequence[str], bar: tqdm) -> Collectors:
        """Run what follows the last block forward and backward; the moments of the named heads."""
        collectors, last = Collectors(self.work), len(self.blocks) - 1
        with collectors.of(names):
            for number, batch in self.work.batches():
                read, arguments, targets = self.work.loss.prepare(batch, number)
                collectors.begin(read)
                with torch.enable_grad():
                    leaf, result = _with_leaf(self.hidden[self._key(last, number)])
                    output = output_after(self.blocks, arguments, given={0: result})
                    self.work.backward(output.logits, targets, number, collectors)
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
            collectors, last = Collectors(self.work), position == len(groups) - 1
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
        collectors = Collectors(self.work)
        leaf = self.blocks[EMBEDDING].register_forward_hook(require_gradient, prepend=True)
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

    def _through(self, index: int, number: int, batch: Batch, collectors: Collectors) -> Tensor:
        """Run a block on one batch, and the gradient of its output back through it."""
        read, arguments, _ = self.work.loss.prepare(batch, number)
        collectors.begin(read)
        given = {0: self.hidden[self._key(index - 1, number)]} if index > 0 else {}
        call = call_after(self.blocks, arguments, given=given, until=index)
        block, leaf = self.blocks[index], call.hidden.detach().requires_grad_()
        with at_work(block):  # its weights are needed on the way back, too
            with torch.enable_grad():
                output = call.replay(block, leaf.clone())  # a block may change its input in place
            output.backward(self.gradients[number])
        assert leaf.grad is not None
        return leaf.grad

    def _key(self, index: int, number: int) -> int:
        return index * self.count + number


def _with_leaf(result: Any) -> tuple[Tensor, Any]:
    """Replace a block's hidden states by ones that take a gradient; they come first."""
    leaf = hidden_states(result).detach().requires_grad_()
    given = leaf.clone()  # which the model may change in place
    return leaf, ((given, *result[1:]) if isinstance(result, tuple) else given)
