"""The stages after the making: what is measured of a model, and of the dense one beside it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lillama.config import Objective, PerplexityConfig, RunConfig, Stage, Weights
from lillama.core.outputs import STABLE_RANK_CHART
from lillama.evaluate.known import KnownPerplexities
from lillama.evaluate.perplexity import MeasuredText, perplexity
from lillama.evaluate.samples import samples
from lillama.evaluate.stable_rank import draw_stable_ranks, stable_ranks
from lillama.evaluate.throughput import throughput
from lillama.evaluate.variants import COMPRESSED, DENSE, Variant, model_variants, random_variants, student_variants
from lillama.evaluate.wer import word_errors
from lillama.evaluate.zero_shot import recovery, zero_shot
from lillama.model.load import load_model, resolve_device
from lillama.model.lowrank import LowRank
from lillama.model.student import Student, random_student
from lillama.run.prepare import RunInputs, cache_of, kept
from lillama.run.record import Record
from lillama.strategy.plan import RankPlan

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A run's measuring: what is asked for, what it needs, where it is told."""

    config: RunConfig
    record: Record
    inputs: RunInputs

    def perplexity(self, model: nn.Module) -> float:
        """Return the perplexity of the configured text, under its own clock."""
        settings, text = self.config.evaluate.perplexity, self.inputs.text
        assert text is not None
        with self.record.stage("perplexity"):
            return self.perplexity_of(model, text, settings)

    def perplexity_of(self, model: nn.Module, text: MeasuredText, settings: PerplexityConfig) -> float:
        """Return the perplexity of a text, measured as its settings say."""
        return perplexity(
            model,
            text.ids,
            seq_len=settings.seq_len,
            stride=settings.stride,
            batch_size=settings.batch_size,
            progress=self.config.progress,
        )

    def each(self, model: nn.Module, role: str) -> None:
        """Every configured stage that looks at one model by itself."""
        for stage, measure in EACH.items():
            if stage in self.config.stages:
                with self.record.stage(stage.name):
                    self.record.note_measured(stage.name, role, measure(self, model, role))

    def side_by_side(self, variants: list[Variant]) -> None:
        """Speed and memory: all in turn."""
        if Stage.throughput in self.config.stages:
            settings, text = self.config.evaluate.throughput, self.inputs.text
            assert text is not None
            with self.record.stage(Stage.throughput.name):
                found = throughput(variants, text.ids, settings, progress=self.config.progress)
            for role, figures in found.items():
                self.record.note_measured(Stage.throughput.name, role, figures)


def measure_beside(measurement: Measurement, student: Student) -> None:
    """Measure before the student settles: both models in turn, then the dense model alone."""
    dense = measurement.config.evaluate.dense
    measurement.side_by_side([variant for variant in student_variants(student) if dense or variant.role != DENSE])
    if dense:
        measurement.each(student.teacher, DENSE)


def measure_checkpoint(
    measurement: Measurement,
    plan: RankPlan | None,
    finetune: Callable[[nn.Module, nn.Module | None], nn.Module] | None = None,
) -> None:
    """Measure without compressing: the configured model, and a dense one beside it where one is given.

    :param finetune: makes the configured model, beside the baseline, the one that is measured after its perplexity.

    With a plan and no weights to start it from, speed and memory are those of random factors.

    :raises ConfigError: for a model that cannot be loaded.
    """
    config, record = measurement.config, measurement.record
    if config.model.weights is Weights.random and plan is not None and set(config.stages) <= SPEED_ONLY:
        device = resolve_device(config.model)
        measurement.side_by_side(random_variants(config.model, plan.ranks, cache_of(config), device, plan.factors))
        return
    with record.stage("load"):
        models = _models(config)
    teacher = models.get(DENSE) if COMPRESSED in models else None
    if not config.evaluate.dense and teacher is not None:
        del models[DENSE]  # it is there to learn from, not to be measured
    record.note_models({role: sum(p.numel() for p in model.parameters()) for role, model in models.items()})
    if Stage.perplexity in config.stages:
        points = {ROLE_IN_CURVE[role]: measurement.perplexity(model) for role, model in models.items()}
        record.note_curve(points, [], measurement.inputs.text)
    if finetune is not None:
        own = COMPRESSED if COMPRESSED in models else DENSE
        models[own] = finetune(models[own], teacher)
    if plan is not None and Stage.throughput in config.stages:
        measurement.side_by_side(student_variants(random_student(models[DENSE], plan.ranks, plan.factors)))
    else:
        measurement.side_by_side(model_variants(models))
    for role, model in models.items():
        measurement.each(model, role)


SPEED_ONLY = {Stage.plan, Stage.throughput}
ROLE_IN_CURVE = {DENSE: "dense", COMPRESSED: "end"}


def _models(config: RunConfig) -> dict[str, nn.Module]:
    """Return the configured model by its role, and the baseline."""
    cache_dir, base = cache_of(config), config.baseline
    model = load_model(config.model, cache_dir, seed=config.seed)
    low_rank = any(isinstance(module, LowRank) for module in model.modules())
    if base is None or not (config.evaluate.dense or _teaches(config)):
        return {COMPRESSED if low_rank else DENSE: model}
    return {DENSE: load_model(base, cache_dir, seed=config.seed), COMPRESSED: model}


def _teaches(config: RunConfig) -> bool:
    """Tell whether a fine-tuning learns from the baseline."""
    return Stage.finetune in config.stages and config.finetune.objective is Objective.kl


def _zero_shot(measurement: Measurement, model: nn.Module, role: str) -> Figures:
    config, record, inputs = measurement.config, measurement.record, measurement.inputs
    assert inputs.tasks is not None
    found = zero_shot(
        model,
        inputs.tokenizer,
        inputs.tasks,
        config.evaluate.zero_shot,
        cache=kept(config),
        on_task=lambda figures: record.note_measured(Stage.zero_shot.name, role, figures),
        progress=config.progress,
    )
    dense = record.result.measured[Stage.zero_shot.name].get(DENSE)
    if role == COMPRESSED and dense is not None:
        found["recovery"] = recovery(dense, found)
    return found


def _wer(measurement: Measurement, model: nn.Module, role: str) -> Figures:
    config, inputs = measurement.config, measurement.inputs
    assert inputs.speech is not None
    return word_errors(model, inputs.tokenizer, inputs.speech, config.evaluate.wer, progress=config.progress)


def _samples(measurement: Measurement, model: nn.Module, role: str) -> Figures:
    config = measurement.config
    return samples(model, measurement.inputs.tokenizer, config.evaluate.samples, progress=config.progress)


def _stable_rank(measurement: Measurement, model: nn.Module, role: str) -> Figures:
    config, record, text = measurement.config, measurement.record, measurement.inputs.text
    assert text is not None
    found = stable_ranks(model, text.ids, config.evaluate.stable_rank, progress=config.progress)
    known = {**record.result.measured.get(Stage.stable_rank.name, {}), role: found}
    record.claim(STABLE_RANK_CHART)
    draw_stable_ranks(known, record.folder / STABLE_RANK_CHART, title=config.model.name)
    return found


def _domains(measurement: Measurement, model: nn.Module, role: str) -> Figures:
    config, texts = measurement.config, measurement.inputs.domains
    assert texts is not None
    found, known = {}, KnownPerplexities(model, kept(config))
    for name, text in texts.items():
        settings = config.evaluate.domains.texts[name]
        measure = partial(measurement.perplexity_of, model, text, settings)
        value = known.find(name, text, settings, measure)
        found[name] = {"perplexity": value, "bits_per_byte": text.bits_per_byte(value), "tokens": len(text)}
    dense = measurement.record.result.measured.get(Stage.domains.name, {}).get(DENSE)
    if role == COMPRESSED and dense is not None and not {Stage.distill, Stage.finetune} & set(config.stages):
        rises = [math.log(found[name]["perplexity"] / dense[name]["perplexity"]) for name in found]
        measurement.record.note_rise(sum(rises) / len(rises))
    return found


EACH: Mapping[Stage, Callable[[Measurement, nn.Module, str], Figures]] = {
    Stage.zero_shot: _zero_shot,
    Stage.wer: _wer,
    Stage.samples: _samples,
    Stage.stable_rank: _stable_rank,
    Stage.domains: _domains,
}
