"""Take second moments on both sides of matrices: of their inputs, and of the loss's gradients at their outputs.

A model whose blocks form a plain chain is streamed: one forward pass keeps what flows into every block, then the
blocks are run again from the last one down, each with the gradient of its output. One block and its moments are held at
a time, beside the hidden states of the calibration tokens in host memory or on disk. A model whose blocks share more
than hidden states (an encoder's output, a table that one block makes for the others) is run whole, by plain autograd.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lillama.algebra.moments import MOMENT_BYTES
from lillama.config import SAMPLED_LABELS, KfacConfig
from lillama.core.errors import ConfigError
from lillama.data.calibration import Calibration
from lillama.init.curvature.streamed import streamed
from lillama.init.curvature.whole import whole
from lillama.init.curvature.work import Curvature, CurvatureWork, LossMean, require_gradient
from lillama.init.labels import CalibrationLoss
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.inputs import Batch, model_inputs
from lillama.model.offload import offload_hook

__all__ = ["Curvature", "LossMean", "curvatures", "is_plain_chain"]
log = logging.getLogger(__name__)


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
    loss = CalibrationLoss(model, config.labels == SAMPLED_LABELS, getattr(data, "mask_token", None), config.seed)
    work = CurvatureWork(blocks, data, config.output, loss, mean, limit, progress)
    try:
        yield from _curvatures(work, names, scratch)
    finally:
        _let_go(model)


def _curvatures(work: CurvatureWork, names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, Curvature]]:
    blocks = work.blocks
    if is_plain_chain(blocks, next(iter(work.data.batches(1, work.device)))):
        yield from streamed(work, names, scratch)
        return
    if work.device.type != "cpu" and any(offload_hook(blocks[index]) for index in range(len(blocks))):
        raise ConfigError("model.offload=true: init=kfac runs a model of this family whole; set model.offload=false")
    log.info("init=kfac: the blocks share more than hidden states, so the model is run whole")
    yield from whole(work, names)


def _let_go(model: nn.Module) -> None:
    """Cut what modules keep of a pass (RecurrentGemma's states) from its graph: else they could not be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


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
    hooks.append(blocks[EMBEDDING].register_forward_hook(require_gradient))
    try:
        with torch.enable_grad():
            blocks.model(**model_inputs(blocks.model, short).arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return not any(found)
