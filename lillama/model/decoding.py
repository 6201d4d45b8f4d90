"""Make generation depend on our settings alone, not on a checkpoint's own, and stop on non-finite logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from lillama.core.errors import DivergedError


class FiniteLogits(LogitsProcessor):
    """Stops where a logit is not a number or +inf, which greedy decoding would take for a token; -inf forbids one.

    :raises DivergedError: in the step that it shows in.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool((scores.isnan() | scores.isposinf()).any()):
            raise DivergedError(f"{self.stage}: the logits after {input_ids.shape[1]} tokens are not finite")
        return scores


@contextmanager
def settings_alone(model: Any, settings: GenerationConfig) -> Iterator[GenerationConfig]:
    """Within, the model's own settings of generation are these: of what is None in them nothing comes from its own.

    transformers fills in what a call leaves open from the model's (``repetition_penalty``, ``min_length``, ...).
    """
    own = model.generation_config
    model.generation_config = settings
    try:
        yield settings
    finally:
        model.generation_config = own


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The random numbers of a seed, on the host and on the model's device; afterwards those of the run go on."""
    gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if gpu else []):
        torch.default_generator.manual_seed(seed)
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
