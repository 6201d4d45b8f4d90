"""Speed and memory of inference, dense and compressed in turn on the same machine (the paper's Tables 3 and 13).

In a turn a variant goes through all its cases: generations by the number of prompts, then forward passes by length. The
variants take turns, so that a ratio is of two measurements of one round.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lillama.config import ThroughputConfig
from lillama.core.numbers import gibibytes
from lillama.core.spread import ratios, speeds, spread
from lillama.evaluate.generation import (
    DECODE,
    FORWARD,
    PREFILL,
    Case,
    PeakMemory,
    Seconds,
    accepted,
    cases_of,
    check_finite,
    device_of,
    prompts_of,
    weight_bytes,
)
from lillama.evaluate.variants import COMPRESSED, DENSE, Variant, release, tensors_of
from lillama.model.limits import Limits, check_length
from lillama.model.reading import out_of_memory

OOM, NOT_RUN = "OOM", "not run"
T = TypeVar("T")


@dataclass(slots=True)
class Book:
    """Measurements of one variant so far."""

    role: str
    open: list[Case]  # those that are still measured
    seconds: dict[Case, list[Seconds]] = field(default_factory=dict)
    peaks: dict[Case, int | None] = field(default_factory=dict)
    missing: dict[Case, str] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def close(self, cases: Sequence[Case], why: str) -> None:
        """These cases are not tried again."""
        for case in cases:
            self.open.remove(case)
            self.seconds.pop(case, None)
            self.missing[case] = why

    def forecast(self, case: Case) -> float:
        """Return the least that a pass should take: in proportion to the longest length so far; 0 before the first."""
        known = [(times[0][FORWARD], other.length) for other, times in self.seconds.items() if not other.new_tokens]
        if case.new_tokens or not known:
            return 0.0
        seconds, length = known[-1]
        return seconds * case.length / length


def throughput(
    variants: Sequence[Variant], ids: Tensor, config: ThroughputConfig, *, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """Figures by role, and ``ratios`` of the cases that both ``dense`` and ``compressed`` have.

    Figures hold ``forward`` by length, ``prefill`` and ``decode`` by number of prompts: seconds and tokens a second as
    median, lowest and highest over the rounds, and peak memory in bytes; ``"OOM"`` where memory does not suffice,
    ``"not run"`` where time does not. Each round makes ``warmup`` uncounted passes of a case before the counted one,
    because a variant that comes back finds memory that was given back. In the first round each variant has an equal
    share of ``seconds``: it always makes its first case, and then those, shortest first, that should fit into it. No
    other round begins after ``seconds``.

    :param ids: token ids [n] of a text, from whose start every case's prompts are cut one after another.
    :raises ConfigError: for a length that a model refuses, or tokens that it does not know.
    :raises DivergedError: for logits that are not finite.
    """
    cases = cases_of(config)
    books = [Book(variant.role, list(cases)) for variant in variants]
    share, began = config.seconds / max(len(variants), 1), time.perf_counter()
    bar = tqdm(total=config.rounds * len(variants), desc="throughput", leave=False, disable=not progress)
    with bar, _collected():
        for count in range(config.rounds):
            if count and time.perf_counter() - began > config.seconds:
                break
            for variant, book in zip(variants, books, strict=True):
                _turn(variant, book, ids, warmup=config.warmup, share=None if count else share)
                bar.update()
    found = {book.role: _figures(book, cases, config, len(ids)) for book in books}
    own = {book.role: book for book in books}
    if DENSE in own and COMPRESSED in own:
        found["ratios"] = _ratios(own[DENSE], own[COMPRESSED])
    return found


def check_lengths(settings: ThroughputConfig, limits: Limits) -> None:
    """Raise a :class:`ConfigError` for a length that is longer than the model has positions."""
    key = "evaluate.throughput"
    for length in settings.lengths:
        check_length(f"{key}.lengths", length, limits.text)
    if not settings.decode_batches:
        return
    if limits.two_stacks:
        check_length(f"{key}.prompt", settings.prompt, limits.positions)
        check_length(f"{key}.new_tokens", settings.new_tokens, limits.written)
    else:
        check_length(f"{key}.prompt + new_tokens", settings.prompt + settings.new_tokens, limits.positions)


@contextmanager
def _collected() -> Iterator[None]:
    """Garbage collection looks at nothing older than this: it runs before every case, and may run within one."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _turn(variant: Variant, book: Book, ids: Tensor, *, warmup: int, share: float | None) -> None:
    """All open cases of a variant once; in the first round as many as fit into a share of the time."""
    if not book.open:
        return
    with ExitStack() as stack:
        model = _unless_oom(lambda: stack.enter_context(variant.at_work()))
        if model is None:
            book.close(list(book.open), OOM)
            return
        book.known = book.known or _description(model, book.notes)
        began = time.perf_counter()
        for number, case in enumerate(list(book.open)):
            spent = time.perf_counter() - began
            if share is not None and number and spent + (warmup + 1) * book.forecast(case) > share:
                book.close([case], NOT_RUN)
            else:
                _measure(model, case, book, ids, warmup)


def _measure(model: nn.Module, case: Case, book: Book, ids: Tensor, warmup: int) -> None:
    """One counted pass after those that are not; memory and finiteness are looked at in the very first."""
    prompts = prompts_of(model, case, ids)
    seconds = _unless_oom(lambda: _counted(model, case, book, prompts, warmup))
    if seconds is None:
        book.close([case], OOM)
    else:
        book.seconds.setdefault(case, []).append(seconds)


def _counted(model: nn.Module, case: Case, book: Book, prompts: Tensor, warmup: int) -> Seconds:
    seconds: Seconds = {}
    for _ in range(warmup + 1):
        peak = PeakMemory(model) if case not in book.peaks else None
        seconds, logits = accepted(model, case, prompts)
        if peak is not None:
            book.peaks[case] = peak.bytes()
            check_finite(logits, book.role, case)
        del logits  # those of the next pass would come on top
    return seconds


def _unless_oom(work: Callable[[], T]) -> T | None:
    """Do the work; None where memory does not suffice, with all that it had taken free again."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    release()  # only here: until the error is gone, it holds what failed
    return None


def _description(model: nn.Module, notes: list[str]) -> dict[str, Any]:
    device = device_of(model)
    gpu = device.type == "cuda"
    away = sum(tensor.nbytes for tensor in tensors_of(model) if tensor.device != device)
    if away:
        notes.append(f"{gibibytes(away)} of weights stay in host memory and visit the device (model.offload)")
    return {
        "machine": torch.cuda.get_device_name(device) if gpu else "cpu",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "memory": {"weights": weight_bytes(model), "of": "device" if gpu else "host"},
    }


def _figures(book: Book, cases: Sequence[Case], config: ThroughputConfig, text: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        **book.known,
        "batch_size": config.batch_size,
        "prompt": config.prompt,
        "new_tokens": config.new_tokens,
        "rounds": max(map(len, book.seconds.values()), default=0),
        **{part: {} for part in (FORWARD, PREFILL, DECODE)},
    }
    for case in cases:
        for part in case.tokens:
            found[part][case.key] = book.missing.get(case) or _part(book, case, part)
    if "memory" in found:
        peaks = [book.peaks[case] for case in book.seconds]
        known = [peak for peak in peaks if peak is not None]
        found["memory"] = {**found["memory"], "peak": max(known) if known and known == peaks else None}
    longest = max(case.sequences * case.length for case in cases)
    repeated = [f"the text of {text:,} tokens is repeated to make up {longest:,}"] if longest > text else []
    return {**found, "notes": [*book.notes, *repeated]}


def _part(book: Book, case: Case, part: str) -> dict[str, Any]:
    seconds = [taken[part] for taken in book.seconds[case]]
    figures = {"seconds": spread(seconds), "tokens_per_second": speeds(case.tokens[part], seconds)}
    return figures if part == PREFILL else {**figures, "memory": book.peaks[case]}


def _ratios(dense: Book, compressed: Book) -> dict[str, Any]:
    """Compressed to dense, by part and case."""
    found: dict[str, dict[str, Any]] = {part: {} for part in (FORWARD, PREFILL, DECODE)}
    for case in (case for case in dense.seconds if case in compressed.seconds):
        for part in case.tokens:
            taken = [[seconds[part] for seconds in book.seconds[case]] for book in (dense, compressed)]
            found[part][case.key] = {"speed": ratios(*taken)}
            below, above = dense.peaks[case], compressed.peaks[case]
            if part != PREFILL and below and above:
                found[part][case.key]["memory"] = above / below
    weights: list[Mapping[str, Any]] = [book.known["memory"] for book in (dense, compressed) if book.known]
    share = {"weights": weights[1]["weights"] / weights[0]["weights"]} if len(weights) == 2 else {}
    return {**found, **share}
