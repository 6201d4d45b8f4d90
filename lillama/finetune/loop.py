"""The updates of a fine-tuning: one AdamW over all that learns, from one stream of batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lillama.config import FinetuneConfig
from lillama.core.errors import DivergedError
from lillama.data.calibration import Calibration
from lillama.distill.learning_rate import learning_rate
from lillama.distill.progress import ORDERS, LoopContext, Stopwatch
from lillama.distill.snapshot import set_random_state
from lillama.finetune.objective import Loss, loss_of
from lillama.finetune.trainable import TrainableModel
from lillama.model.inputs import Batch
from lillama.model.surgery import take_orders


@dataclass(frozen=True, slots=True)
class Update:
    """One update: its number (from 0) of how many, tokens seen after it, mean loss, gradient norm, rate."""

    step: int
    steps: int
    tokens: int
    loss: float
    norm: float
    lr: float
    tokens_per_second: float


def fine_tune(
    tuned: TrainableModel,
    data: Calibration,
    config: FinetuneConfig,
    context: LoopContext | None = None,
    on_update: Callable[[Update], None] = lambda update: None,
    *,
    teacher: nn.Module | None = None,
) -> None:
    """Fine-tune a model in place, by AdamW on the mean loss of each batch's predicted tokens.

    :param data: text or speech, read ``config.epochs`` times in its own order.
    :param context: how it is run; by default without snapshots. A snapshot to go on from gives the weights, too.
    :param teacher: the dense model, where the loss compares with it (``objective=kl``).
    :raises DivergedError: for a loss or a gradient that is not finite, before it changes a weight.
    """
    context = context or LoopContext()
    steps = config.epochs * math.ceil(len(data) / config.batch_size)
    loss_fn, optimizer = loss_of(tuned, config, teacher), _optimizer(tuned, config)
    first, seen = _begin(tuned, optimizer, context)
    total = data.tokens * config.epochs
    bar = tqdm(total=total, initial=seen, desc="fine-tune", unit="tok", disable=not context.progress)
    with bar, context.under_way(), _training(tuned, config):
        for step, batch in enumerate(_batches(tuned, data, config, first), first):
            watch = Stopwatch()
            lr = learning_rate(step, steps, peak=config.lr, warmup=config.warmup, shape=config.lr_schedule)
            where = f"step {step} ({seen} tokens seen)"
            loss, norm = _update(tuned, batch, loss_fn, optimizer, config, lr=lr, where=where)
            before, seen = seen, seen + batch.tokens
            on_update(Update(step, steps, seen, loss, norm, lr, watch.lap(batch.tokens)))
            bar.update(batch.tokens)
            bar.set_postfix(loss=f"{loss:.4f}")
            _after(tuned, optimizer, context, step=step + 1, steps=steps, before=before, tokens=seen)
    tuned.check_finite()


def _optimizer(tuned: TrainableModel, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay."""
    parameters = list(tuned.learning.values())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)


def _begin(tuned: TrainableModel, optimizer: torch.optim.Optimizer, context: LoopContext) -> tuple[int, int]:
    """From the start or a snapshot: the first step to make, and the tokens seen before it."""
    if context.start is None:
        return 0, 0
    weights = context.start.part("weights", tuned.device)
    with torch.no_grad():
        for name, parameter in tuned.learning.items():
            parameter.copy_(weights[name])
    if orders := tuned.orders():
        take_orders(orders, context.start.part(ORDERS, tuned.device))
    optimizer.load_state_dict(context.start.part("optimizer", tuned.device))
    set_random_state(context.start.part("random"))
    position = context.start.position
    context.point(position["tokens"])  # the run may have been killed while it was measured
    return position["step"], position["tokens"]


@contextmanager
def _training(tuned: TrainableModel, config: FinetuneConfig) -> Iterator[None]:
    """The model in training mode: its own dropout is on."""
    model: Any = tuned.model
    model.train()
    if config.activation_checkpointing:
        _checkpointing(model, "enable")({"use_reentrant": False})
    try:
        yield
    finally:
        model.eval()
        if config.activation_checkpointing:
            _checkpointing(model, "disable")()


def _checkpointing(model: Any, do: str) -> Callable[..., None]:
    """Return the method by its new name, where this transformers has it."""
    return getattr(model, f"activation_checkpointing_{do}", None) or getattr(model, f"gradient_checkpointing_{do}")


def _batches(tuned: TrainableModel, data: Calibration, config: FinetuneConfig, first: int) -> Iterator[Batch]:
    every = (batch for _ in range(config.epochs) for batch in data.batches(config.batch_size, tuned.device))
    return islice(every, first, None)


def _update(
    tuned: TrainableModel,
    batch: Batch,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    *,
    lr: float,
    where: str,
) -> tuple[float, float]:
    """One update; the batch's mean loss and the norm of its gradient before it is clipped."""
    loss = _gradients(tuned, batch, loss_fn, config.micro_batch or len(batch))
    if not math.isfinite(loss):
        raise DivergedError(f"finetune: the loss is {loss} at {where}")
    limit = math.inf if config.clip_norm is None else config.clip_norm
    norm = float(torch.nn.utils.clip_grad_norm_(tuned.learning.values(), limit))
    if not math.isfinite(norm):
        raise DivergedError(f"finetune: the norm of the gradient is {norm} at {where}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm


def _gradients(tuned: TrainableModel, batch: Batch, loss_fn: Loss, size: int) -> float:
    """Sum the gradients of a batch's mean loss over its parts, and return that loss."""
    loss_fn.of(batch)
    total = 0.0
    narrow = tuned.dtype is torch.bfloat16  # weights that learn are float32, and compute in what the model has
    for start in range(0, len(batch), size):
        with torch.autocast(tuned.device.type, torch.bfloat16, enabled=narrow):
            loss = loss_fn(batch.rows(start, start + size))
        loss.backward()
        total += loss.item()
    return total


def _after(
    tuned: TrainableModel,
    optimizer: torch.optim.Optimizer,
    context: LoopContext,
    *,
    step: int,
    steps: int,
    before: int,
    tokens: int,
) -> None:
    """Save a snapshot where one is due after an update, and measure a point of the curve where its mark was passed."""
    mark = context.at_mark(before, tokens)
    if mark or context.save_wanted(step, last=step == steps):
        weights = {name: parameter.data for name, parameter in tuned.learning.items()}
        context.save(step, {"step": step, "tokens": tokens}, {"weights": weights, "optimizer": optimizer.state_dict()})
    if mark:
        context.point(tokens)
