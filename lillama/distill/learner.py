"""One compressed block and its own optimizer."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lillama.config import DistillConfig, Keep, Train
from lillama.errors import DivergedError
from lillama.model.blocks import BlockCall, Swap
from lillama.runtime import LowRank

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Feed(NamedTuple):
    """What a block is fed with: hidden states [b, t, d], its loss's weight, arguments that are not the teacher's."""

    hidden: Tensor
    weight: float
    context: Swap | None = None


class BlockLearner:
    """A student block, its AdamW, and how one batch teaches it (Section 4, Figure 7).

    :param dtype: what the model computes in; master weights are wider.
    """

    def __init__(
        self, index: int, block: nn.Module, config: DistillConfig, loss: LossFunction, *, dtype: torch.dtype
    ) -> None:
        self.index = index
        self.block = block.requires_grad_(False).train(config.dropout)
        self.loss = loss
        self.dtype = dtype
        self.clip_norm = config.clip_norm
        self.parameters = trained_parameters(block, config.train)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self._keep = config.keep
        self._best: tuple[float, list[Tensor]] | None = None
        self._optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def backward(self, call: BlockCall, feeds: Iterable[Feed], mask: Tensor | None) -> tuple[float, Tensor]:
        """Leave the gradients of one batch in the parameters.

        :param call: the teacher's call; its output [b, t, d] is what the block learns.
        :param feeds: what to feed the block with. :param mask: true where a token counts [b, t], or None for all.
        :return: the loss, all feeds together, and the block's output for the last feed, before any update.
        :raises DivergedError: for a loss that is not finite.
        """
        total = 0.0
        output = call.output
        for feed in feeds:
            with torch.enable_grad(), self._precision(feed.hidden.device):
                output = call.replay(self.block, feed.hidden, feed.context)
                loss = feed.weight * self.loss(output, call.output, mask)
            loss.backward()
            total += loss.item()
        if not torch.isfinite(torch.tensor(total)):
            raise DivergedError(f"block {self.index}: the loss is {total}")
        return total, output.detach().to(call.output.dtype)  # autocast may widen what it computes

    def update(self, lr: float, loss: float) -> None:
        """One AdamW step with the gradients that :meth:`backward` left, which are then gone."""
        self._remember(loss)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """Put back the weights to keep, where those are not the last."""
        if self._best is not None:
            for parameter, value in zip(self.parameters, self._best[1], strict=True):
                parameter.data.copy_(value)

    def _remember(self, loss: float) -> None:
        if self._keep is Keep.lowest_batch and (self._best is None or loss < self._best[0]):
            self._best = (loss, [parameter.detach().clone() for parameter in self.parameters])

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Master weights are float32: their products are computed in the model's narrower dtype all the same."""
        if self.dtype == torch.float32 or all(p.dtype == self.dtype for p in self.parameters):
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def trained_parameters(block: nn.Module, train: Train) -> list[nn.Parameter]:
    """The parameters that learn: every one of the block's, or the factors (and the biases they carry) only.

    A table inside a block stays as it is: T5's position bias is made by one block for all the others.
    """
    if train is Train.block and not isinstance(block, LowRank):
        tables = {id(p) for module in block.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        return [parameter for parameter in block.parameters() if id(parameter) not in tables]
    pairs = [module for module in block.modules() if isinstance(module, LowRank)]
    return [factor for pair in pairs for factor in pair.factor_parameters()]
