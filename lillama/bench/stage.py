"""``stages=[plan, bench]``: what the engine costs on this machine, as ratios measured in one run, alternating.

Efficiency is the time of the matrix products that one step makes, run alone, over the time of the whole step. The
counted operations stand beside those that the method needs by hand, so that a wasted product would show.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lillama.bench.authors import AuthorsDistillation
from lillama.bench.built import Built, build, clean_start, left_out, memory
from lillama.bench.engine import Engine, Reference, gpu_name
from lillama.bench.figure import draw
from lillama.bench.literal import LiteralDistillation
from lillama.bench.needed import Settings, attention_flops, llama_like, needed_flops
from lillama.bench.products import Product, Replay, total_flops
from lillama.bench.projection import project
from lillama.config import RunConfig, Task, Train
from lillama.core.errors import ConfigError
from lillama.core.outputs import BENCH_CHART, SCRATCH
from lillama.core.spread import ratios, shown, speeds, spread
from lillama.model.source import ModelSource
from lillama.strategy.plan import RankPlan

log = logging.getLogger(__name__)
ENGINE, PRODUCTS, AUTHORS, LITERAL = "engine", "products", "authors", "literal"
REFERENCES = {AUTHORS: "the method as its authors run it", LITERAL: "the literal reference"}


def bench(config: RunConfig, source: ModelSource, plan: RankPlan, folder: Path) -> dict[str, Any]:
    """Measure a distillation with this configuration; the figures under ``bench`` in ``results.json``.

    Seconds are of one batch, memory is in bytes. ``bench.png`` is written into the folder.

    :raises ConfigError: for a speech model, or one that cannot be loaded.
    """
    if source.task is Task.speech_seq2seq:
        raise ConfigError(f"stages: bench feeds random tokens, and {config.model.name} is a speech model")
    torch.manual_seed(config.seed)
    before = clean_start(config)
    built = build(config, source, plan)
    scratch = folder / SCRATCH / "bench"
    engine = Engine(built.student, config.distill, config.loss, length=config.data.seq_len, scratch=scratch)
    products = engine.record()
    for _ in range(config.bench.warmup):
        engine.seconds()
    found = _description(config, plan, built, engine)
    found["memory"] = memory(built, plan, before)  # the references, which are made next, take more
    references, notes = _references(config, built, engine)
    seconds = _rounds(config, engine, Replay(products, built.device), references)
    found |= _figures(config, built, engine, products, seconds)
    found["notes"] = [*notes, *left_out(built, plan), *([] if found["gpu"] else ["not measured on a GPU"])]
    found["projection"] = _projection(config, plan, built, engine, found)
    draw(found, folder / BENCH_CHART, title=config.model.name)
    log.info("%s", one_line(config.model.name, found))
    return found


def one_line(name: str, found: dict[str, Any]) -> str:
    """Summarise the findings for a terminal."""
    where, projection = found["gpu"] or "cpu", found["projection"]
    parts = [
        f"{name} on {where}, {found['schedule']}",
        f"efficiency {shown(found['efficiency'])}",
        f"{shown(found['tokens_per_second'][ENGINE])} tokens/s",
        *(f"{shown(ratio)} times {REFERENCES[reference]}" for reference, ratio in found["speedup"].items()),
        f"{projection['tokens']:,} tokens in {projection['seconds'] / 60:,.1f} min",
        *([projection["note"]] if projection["note"] else []),
    ]
    return "; ".join(parts)


def _references(config: RunConfig, built: Built, engine: Engine) -> tuple[dict[str, Reference], list[str]]:
    """Return the references that can be run, and why others cannot."""
    notes = {name: _why_not(name, config, built) for name in REFERENCES}
    found: dict[str, Reference] = {}
    if notes[AUTHORS] is None:
        found[AUTHORS] = Reference(engine, AuthorsDistillation(engine.student, engine.loss))
    if notes[LITERAL] is None:
        options = {"lr": config.distill.lr, "weight_decay": config.distill.weight_decay}
        found[LITERAL] = Reference(engine, LiteralDistillation(engine.student, engine.loss, **options))
    for reference in found.values():
        for _ in range(config.bench.warmup):
            reference.seconds()
    return found, [f"{REFERENCES[name]} was not run: {why}" for name, why in notes.items() if why is not None]


def _why_not(name: str, config: RunConfig, built: Built) -> str | None:
    """Say why a reference cannot be run; None where it can."""
    why = None
    if not getattr(config.bench, name):
        why = f"bench.{name}=false"
    elif len(built.student.teacher_blocks.stacks) > 1:
        why = "it is for decoders with one stack of blocks"
    elif not all(0 <= index < built.shape.blocks for index in built.student.blocks):
        why = "it knows no low-rank embedding or head"
    elif name == LITERAL and config.distill.train is not Train.factors:
        why = "it trains factors only"
    return why


def _rounds(
    config: RunConfig, engine: Engine, replay: Replay, references: Mapping[str, Reference]
) -> dict[str, list[float]]:
    """Seconds of everything, turn by turn, as many rounds as time allows."""
    timed = {ENGINE: engine.seconds, PRODUCTS: replay.seconds}
    timed |= {name: reference.seconds for name, reference in references.items()}
    found: dict[str, list[float]] = {name: [] for name in timed}
    replay.seconds()  # makes its numbers, warms up
    began = time.perf_counter()
    while len(found[ENGINE]) < config.bench.rounds:
        for name, measure in timed.items():
            found[name].append(measure())
        if time.perf_counter() - began > config.bench.seconds:
            break
    return found


def _description(config: RunConfig, plan: RankPlan, built: Built, engine: Engine) -> dict[str, Any]:
    sequences, length = config.distill.batch_size, config.data.seq_len
    return {
        "device": built.device.type,
        "gpu": gpu_name(built.device),
        "dtype": str(built.student.dtype).removeprefix("torch."),
        "schedule": "blockwise" if engine.blockwise else "joint",
        "batch": {"sequences": sequences, "length": length, "tokens": engine.tokens},
        "blocks": {
            "measured": len(built.student.blocks),
            "of_plan": len(plan.blocks),
            "built": built.shape.blocks,
            "of_model": built.whole.blocks,
        },
    }


def _figures(
    config: RunConfig, built: Built, engine: Engine, products: list[Product], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    counted = total_flops(products)
    speed = {name: speeds(engine.tokens, seconds[name]) for name in (ENGINE, *REFERENCES) if name in seconds}
    found: dict[str, Any] = {
        "rounds": len(seconds[ENGINE]),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "efficiency": ratios(seconds[PRODUCTS], seconds[ENGINE]),
        "tokens_per_second": speed,
        "speedup": {name: ratios(seconds[name], seconds[ENGINE]) for name in REFERENCES if name in seconds},
        "flops": {"recorded": counted, "per_second": counted / spread(seconds[ENGINE])["median"]},
        "products": [product.as_dict() for product in products],
    }
    if llama_like(built.shape, built.ranks):
        needed = needed_flops(built.shape, built.ranks, _settings(config, built, engine))
        found["flops"] |= {"needed": needed, "recorded_to_needed": counted / needed}
    return found


def _settings(config: RunConfig, built: Built, engine: Engine) -> Settings:
    known: Any = built.student.teacher.config
    return Settings(
        tokens=engine.tokens,
        attention=attention_flops(known, sequences=config.distill.batch_size, length=config.data.seq_len),
        inputs=config.loss.inputs,
        train=config.distill.train,
        blockwise=engine.blockwise,
        active=getattr(known, "num_experts_per_tok", None) or 1,
    )


def _projection(
    config: RunConfig, plan: RankPlan, built: Built, engine: Engine, found: dict[str, Any]
) -> dict[str, Any]:
    settings = _settings(config, built, engine)
    projection = project(
        tokens=config.bench.project_tokens,
        tokens_per_second=found["tokens_per_second"][ENGINE]["median"],
        measured_flops=needed_flops(built.whole, built.ranks, settings),
        all_flops=needed_flops(built.whole, plan.ranks, settings),
        device=found["device"],
        gpu=found["gpu"],
    )
    return projection.as_dict()
