"""Run what is timed, a forward pass or a generation: its prompts, its seconds, the memory that it takes.

The device has finished whenever a clock is read.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lillama.config import ThroughputConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.core.machine import host_peak, reset_peaks
from lillama.evaluate.variants import release, tensors_of
from lillama.model.decoding import settings_alone
from lillama.model.inputs import Batch, model_inputs
from lillama.model.reading import out_of_memory

FORWARD, PREFILL, DECODE = "forward", "prefill", "decode"
SLACK = 64 * 2**20  # bytes; the kernel's two counts of resident memory differ by less
Seconds = dict[str, float]  # by part: forward, or prefill and decode


@dataclass(frozen=True, slots=True)
class Case:
    """A forward pass of ``sequences`` prompts of ``length`` tokens, or a generation of ``new_tokens`` for each."""

    sequences: int
    length: int
    new_tokens: int = 0

    @property
    def key(self) -> str:
        """Return its name in the results: a length, or a number of prompts."""
        return str(self.sequences if self.new_tokens else self.length)

    @property
    def tokens(self) -> dict[str, int]:
        """Count the tokens of each timed part, over all sequences; the first new one is the prefill's."""
        prompt = self.sequences * self.length
        if not self.new_tokens:
            return {FORWARD: prompt}
        return {PREFILL: prompt, DECODE: self.sequences * (self.new_tokens - 1)}

    def run(self, model: nn.Module, ids: Tensor) -> tuple[Seconds, Tensor]:
        """One pass: its seconds by part, and logits."""
        return generate(model, ids, self.new_tokens) if self.new_tokens else forward(model, ids)


def cases_of(config: ThroughputConfig) -> list[Case]:
    """List the measurements of each variant, cheap ones first."""
    sizes, lengths = sorted(set(config.decode_batches)), sorted(set(config.lengths))
    generations = [Case(size, config.prompt, config.new_tokens) for size in sizes]
    return [*generations, *(Case(config.batch_size, length) for length in lengths)]


def accepted(model: Any, case: Case, prompts: Tensor) -> tuple[Seconds, Tensor]:
    """Run a pass; an error beyond the model's own length is a refusal.

    :raises ConfigError: for a length that the model refuses. A table of positions is looked at first, because on a GPU
        a position outside of it leaves a device that answers nothing any more.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    beyond = limit is not None and _reach(model, case) > limit
    key = "prompt" if case.new_tokens else "lengths"
    refusal = f"evaluate.throughput.{key}={case.length}: {type(model).__name__} takes at most {limit} tokens"
    if limit is not None and beyond and _has_position_table(model, limit):
        raise ConfigError(refusal)
    try:
        return case.run(model, prompts)
    except (RuntimeError, ValueError, IndexError) as error:
        if not beyond or out_of_memory(error):
            raise
        raise ConfigError(f"{refusal} ({' '.join(str(error).split())[:200]})") from None


def _reach(model: Any, case: Case) -> int:
    """Return the longest sequence that a case asks of one stack of a model."""
    if not model.config.is_encoder_decoder:
        return case.length + case.new_tokens
    return max(case.length, case.new_tokens) if case.new_tokens else (case.length + 1) // 2


def _has_position_table(model: Any, limit: int) -> bool:
    """Tell whether positions are learned; some families leave a few rows of the table unused."""
    words = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words]
    return any(limit <= table.num_embeddings <= limit + 8 for table in tables)


def prompts_of(model: Any, case: Case, ids: Tensor) -> Tensor:
    """Return the first tokens of a text as prompts [b, t] where the model computes; a short text begins anew.

    :raises ConfigError: for tokens beyond the model's vocabulary.
    """
    wanted = case.sequences * case.length
    cut = ids.repeat(-(-wanted // len(ids)))[:wanted]
    vocabulary, highest = model.config.get_text_config().vocab_size, int(cut.max())
    if highest >= vocabulary:
        raise ConfigError(f"model.tokenizer: the text holds the token {highest}, and the model knows {vocabulary}")
    return cut.view(case.sequences, case.length).to(device_of(model))


def check_finite(logits: Tensor, role: str, case: Case) -> None:
    """By the extremes, which need no memory of the logits' size; in a generation some tokens are ruled out by -inf."""
    ends = [logits.amax()] if case.new_tokens else list(logits.aminmax())
    if not all(bool(end.isfinite()) for end in ends):
        raise DivergedError(f"throughput: the {role} model's logits at length {case.length} are not finite")


def forward(model: nn.Module, ids: Tensor) -> tuple[dict[str, float], Tensor]:
    """Return the seconds of one pass without a cache, under ``forward``, and all its logits.

    :param ids: token ids [b, t]; an encoder-decoder reads the first half of each sequence and is told the second.
    """
    inputs = model_inputs(model, Batch(ids)).arguments
    with torch.inference_mode():
        began = now(ids.device)
        logits = model(**inputs).logits
        return {FORWARD: now(ids.device) - began}, logits


def generate(model: Any, ids: Tensor, new_tokens: int) -> tuple[dict[str, float], Tensor]:
    """Return the seconds of one greedy generation, and the last logits [b, V].

    ``prefill`` goes from the call to the first logits, ``decode`` from there to the last: ``new_tokens - 1`` steps.
    No sequence ends early.

    :param ids: prompts [b, t].
    """
    clock = Clock(ids.device)
    own = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        disable_compile=True,  # a compiled step would be compiled anew for each variant
        pad_token_id=own.pad_token_id or 0,
        decoder_start_token_id=own.decoder_start_token_id or 0,  # of an encoder-decoder; which one costs nothing
    )
    with torch.inference_mode(), settings_alone(model, settings) as alone:
        began = now(ids.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=alone,
            logits_processor=LogitsProcessorList([clock]),
        )
    first, last = clock.times[0], clock.times[new_tokens - 1]
    return {PREFILL: first - began, DECODE: last - first}, clock.scores


class Clock(LogitsProcessor):
    """Notes the time at which each step's logits are there, and leaves them as they are: works for every family."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []
        self.scores: Tensor = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(now(self.device))
        self.scores = scores
        return scores


def now(device: torch.device) -> float:
    """Return the time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """The most memory that there is between making this and asking for it, in bytes.

    On a GPU what tensors hold on it; on a CPU, where every variant is resident, this one's weights and what the
    process's resident memory grows by, to some tens of MiB: the allocator keeps room of its own.

    :param model: the variant at work.
    """

    def __init__(self, model: nn.Module) -> None:
        self.device = device_of(model)
        self.weights = weight_bytes(model)
        release()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        for tensor in tensors_of(model):
            tensor.sum()  # weights that are mapped from files become resident when they are first read
        reset_peaks()
        self.before = host_peak()
        self.known = self.before <= _resident() + SLACK  # otherwise the system does not let one forget earlier peaks

    def bytes(self) -> int | None:
        """Return the peak; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self.weights + host_peak() - self.before if self.known else None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model."""
    return next(model.parameters()).device


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers on the device where a model computes; what is tied counts once."""
    device = device_of(model)
    return sum(tensor.nbytes for tensor in tensors_of(model) if tensor.device == device)


def _resident() -> int:
    """Return the process's resident memory in bytes; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0)
