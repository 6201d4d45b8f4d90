"""Find the arguments of a block that have one row for each sequence, seen from calls with two and with three sequences.

One shape does not tell: a mask [1, 1, t, t] in a batch of one may be that sequence's, or one for any number of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lillama.model.blocks import Blocks
from lillama.model.calls import BlockCall, Layout
from lillama.model.inputs import Batch, model_inputs
from lillama.model.runs import run_blocks

COUNTS = (2, 3)
ENOUGH = 16  # tokens


def layouts_of(blocks: Blocks, batch: Batch) -> dict[int, Layout]:
    """:func:`row_layouts`, found once for batches with padding and once for those without."""
    padded = batch.mask is not None
    if padded not in blocks.layouts:
        blocks.layouts[padded] = row_layouts(blocks, batch)
    return blocks.layouts[padded]


def row_layouts(blocks: Blocks, batch: Batch) -> dict[int, Layout]:
    """Return the layout of every block's arguments, by block, from two passes over the first sequence of a batch."""
    shapes: dict[int, list[dict[tuple[Any, ...], tuple[int, ...]]]] = {}

    def note(call: BlockCall) -> None:
        shapes.setdefault(call.index, []).append(dict(_shapes([call.args, call.kwargs])))

    device = batch.ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout may be on
        for count in COUNTS:
            inputs = model_inputs(blocks.model, _repeated(batch, count))
            run_blocks(blocks, inputs.arguments, wanted=range(len(blocks)), on_block=note)
    return {index: dict(_layout(*found)) for index, found in shapes.items()}


def _repeated(batch: Batch, count: int) -> Batch:
    """Return the first sequence so many times; only its beginning, where no padding has to be in it."""
    if batch.mask is None and batch.features is None:
        return Batch(batch.ids[:1, :ENOUGH].repeat_interleave(count, 0))
    mask, features = (None if x is None else x[:1].repeat_interleave(count, 0) for x in (batch.mask, batch.features))
    return Batch(batch.ids[:1].repeat_interleave(count, 0), mask, features)


def _shapes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], tuple[int, ...]]]:
    if isinstance(value, Tensor):
        yield path, tuple(value.shape)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _shapes(part, (*path, key))
    elif isinstance(value, list | tuple):
        for position, part in enumerate(value):
            yield from _shapes(part, (*path, position))


def _layout(
    first: Mapping[tuple[Any, ...], tuple[int, ...]], second: Mapping[tuple[Any, ...], tuple[int, ...]]
) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """True where the rows grow with the sequences, False where they stay; nothing where neither is so."""
    for path in first.keys() & second.keys():
        two, three = first[path], second[path]
        if two == three:
            yield path, False
        elif two and three and two[1:] == three[1:] and (two[0], three[0]) == COUNTS:
            yield path, True
