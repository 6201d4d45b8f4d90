"""One compressed block and its own optimizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lillama.config import AdamPrecision, DistillConfig, Keep
from lillama.model.calls import BlockCall, Layout, Swap

# Of a student's and a teacher's output [b, t, d] and a mask [b, t] or None: the sum over the tokens that count.
LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Feed(NamedTuple):
    """Inputs of a block: hidden states [b, t, d], its loss's weight, arguments that are not the teacher's."""

    hidden: Tensor
    weight: float
    context: Swap | None = None


class BlockLearner:
    """A student block, its AdamW, and how one batch teaches it (Section 4, Figure 7).

    :param parameters: those of the block that learn. :param loss: of the feeds' outputs; summed over tokens.
    :param dtype: what the model computes in; master weights are wider.
    """

    def __init__(
        self,
        index: int,
        block: nn.Module,
        parameters: Sequence[nn.Parameter],
        config: DistillConfig,
        loss: LossFunction,
        *,
        dtype: torch.dtype,
    ) -> None:
        self.index = index
        self.block = block.requires_grad_(False).train(config.dropout)
        self.loss = loss
        self.dtype = dtype
        self.clip_norm = config.clip_norm
        self.merge = config.merge
        self.parameters = list(parameters)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self._config = config
        self._best: tuple[float, list[Tensor]] | None = None
        self.optimizer = make_optimizer(self.parameters, config)
        if config.compile:
            block.forward = torch.compile(block.forward)

    def backward(
        self, call: BlockCall, feeds: Sequence[Feed], mask: Tensor | None, divisor: float, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of one batch to those in the parameters.

        :param call: the teacher's call; its output [b, t, d] is what the block learns.
        :param feeds: what to feed the block with. :param mask: true where a token counts [b, t], or None for all.
        :param divisor: what the summed loss is divided by: 1, or how many tokens the whole update counts.
        :param layout: how the call's arguments belong to the batch, where several feeds are to be one call.
        :return: the loss (a scalar on the device), all feeds together, and the block's output for the last feed,
            before any update.
        """
        total = call.output.new_zeros((), dtype=torch.float32)
        for inner, group in self._calls(call, feeds, layout):
            with torch.enable_grad(), self._precision(inner.hidden.device):
                output = inner.replay(self.block, inner.hidden)
                parts = output.chunk(len(group))
                losses = [
                    feed.weight / divisor * self.loss(part, call.output, mask)
                    for feed, part in zip(group, parts, strict=True)
                ]
                loss = torch.stack(losses).sum()
            loss.backward()
            total += loss.detach()
        return total, parts[-1].detach().to(call.output.dtype)  # autocast may widen what it computes

    def update(self, lr: float, loss: Tensor) -> None:
        """One AdamW step with the gradients that :meth:`backward` left, which are then gone."""
        self._remember(loss)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao compiles its step, and the rate is an input of it
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget what :meth:`backward` left."""
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Put back the weights to keep, where those are not the last; the block is as it was but for them."""
        if self._config.compile:
            vars(self.block).pop("forward", None)
        if self._best is not None:
            for parameter, value in zip(self.parameters, self._best[1], strict=True):
                parameter.data.copy_(value)

    def keep_if_lower(self, loss: float) -> bool:
        """Remember the weights as they are if no loss before was as low; whether that is so."""
        lower = self._best is None or loss < self._best[0]
        if lower:
            self._best = (loss, [parameter.detach().clone() for parameter in self.parameters])
        return lower

    def state(self) -> dict[str, Any]:
        """Return all that resuming takes: weights, moments, the weights to keep; tensors are the learner's own."""
        values = [parameter.detach() for parameter in self.parameters]
        return {"parameters": values, "optimizer": self.optimizer.state_dict(), "best": self._best}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        device = self.parameters[0].device
        if state["optimizer"] is not None:  # as it is of a finished distillation that was kept
            self.optimizer.load_state_dict(state["optimizer"])
        best = state["best"]
        self._best = None if best is None else (best[0], [value.to(device) for value in best[1]])

    def _calls(
        self, call: BlockCall, feeds: Sequence[Feed], layout: Layout
    ) -> Iterator[tuple[BlockCall, Sequence[Feed]]]:
        """Yield the calls that it takes, each with the feeds in its batch: one, where the feeds can be joined."""
        several = self.merge and len(feeds) > 1
        joined = call.joined([(feed.hidden, feed.context) for feed in feeds], layout) if several else None
        if joined is not None:
            yield joined, feeds
            return
        for feed in feeds:
            args, kwargs = call.arguments(feed.context)
            yield BlockCall(call.index, feed.hidden, args, kwargs), [feed]

    def _remember(self, loss: Tensor) -> None:
        if self._config.keep is Keep.lowest_batch:
            self.keep_if_lower(loss.item())

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Master weights are float32: their products are computed in the model's narrower dtype all the same."""
        if self.dtype == torch.float32 or all(p.dtype == self.dtype for p in self.parameters):
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def make_optimizer(parameters: Iterable[nn.Parameter], config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW over one block's parameters; ``moments=int8`` is torchao's."""
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.moments is AdamPrecision.int8:
        from torchao.optim import AdamW8bit

        return AdamW8bit(list(parameters), **options)
    return torch.optim.AdamW(parameters, fused=True, **options)
