"""Take moments of a model that is run whole, by plain autograd."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lillama.init.curvature.work import (
    Collectors,
    Curvature,
    CurvatureWork,
    progress_bar,
    require_gradient,
    tied_heads,
    with_gradient,
)
from lillama.model.blocks import EMBEDDING
from lillama.model.calls import block_call, with_hidden


def whole(work: CurvatureWork, names: Sequence[str]) -> Iterator[tuple[str, Curvature]]:
    """Run the whole model forward and backward, once for each group of matrices."""
    blocks = work.blocks
    for group in work.groups(names):
        collectors, heads = Collectors(work), tied_heads(blocks, group)
        leaves = [
            blocks[stack.indices[0]].register_forward_pre_hook(_leaf, with_kwargs=True) for stack in blocks.stacks
        ]
        if EMBEDDING in map(blocks.index_of, group):
            leaves.append(blocks[EMBEDDING].register_forward_hook(require_gradient, prepend=True))
        try:
            with collectors.of([*group, *heads.values()]), progress_bar(work, 1) as bar:
                for number, batch in work.batches():
                    read, arguments, targets = work.loss.prepare(batch, number)
                    collectors.begin(read)
                    with torch.enable_grad():
                        work.backward(blocks.model(**arguments).logits, targets, number, collectors)
                    bar.update(batch.tokens)
        finally:
            for hook in leaves:
                hook.remove()
        for name in group:
            yield name, collectors.taken(name, collectors.taken(heads[name]) if name in heads else None)


def _leaf(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cut the graph below a block that has none, so that gradients reach its hidden states."""
    return with_hidden(args, kwargs, with_gradient(block_call(0, args, kwargs).hidden))
