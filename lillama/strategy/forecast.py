"""Forecast the loss of plans from moments alone, before anything is cut."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lillama.config import FactorForm, KfacRanksConfig
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape
from lillama.strategy.kfac import plan_kfac
from lillama.strategy.pooled import lost_after

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The measured rise of the loss over the predicted one: its middle, and the lowest and highest to expect."""

    middle: float
    low: float
    high: float


def measured_over_predicted(tokens: int) -> Ratio:
    """Estimate how much more the loss rises than the moments of so many tokens predict.

    Moments fit their own tokens better than other text, the more so the fewer they are. Measured on SmolLM2-135M,
    pivoted, before any training, on text that nothing was chosen by (docs/results.md): with 32,768 tokens 1.09, 1.37
    (1.42 on another text), 1.41 and 1.38 at 10, 20, 30 and 40%; with 65,536 tokens 1.16 at 20%; with 8,192 1.87. The
    exponent lies between what the last two say.
    """
    excess = (32768 / tokens) ** 0.8
    return Ratio(1 + 0.37 * excess, 1 + 0.09 * excess, 1 + 0.42 * excess)


def predicted_loss_rise(ranks: Mapping[str, int], values: Mapping[str, Sequence[float]]) -> float:
    """Sum half of the squared singular values that the ranks leave out, over the matrices: nats per token."""
    return sum(0.5 * lost_after(values[name])[rank] for name, rank in ranks.items())


def forecast(
    shape: ModelShape, config: KfacRanksConfig, values: Mapping[str, Sequence[float]], *, loss: float, tokens: int
) -> dict[str, Any]:
    """Predict the loss and the perplexity at several sizes, with plain and with pivoted factors.

    :param values: squared singular values of the two-sided factorisations, by matrix. :param loss: the dense model's
        mean loss on the tokens of the moments, in nats. :param tokens: how many those were.
    :return: the ratio that the expected rise is the predicted one times of, and a point a form and reduction; one that
        is out of reach has none.
    """
    shape = replace(shape, targets=tuple(target for target in shape.every if target.name in values))
    points, ratio = [], measured_over_predicted(tokens)
    for form in FactorForm:
        for reduction in REDUCTIONS:
            factored = shape.factored(form)
            target = int(shape.parameters * (1 - reduction))
            try:
                ranks = plan_kfac(
                    factored, target, replace(config, reduction=reduction, parameters=None), _given(values)
                )
            except ConfigError:
                continue
            points.append(_point(form, reduction, predicted_loss_rise(ranks, values), loss, ratio))
    return {
        "tokens": tokens,
        "dense": {"loss": loss, "perplexity": math.exp(loss)},
        "measured_over_predicted": {"middle": ratio.middle, "low": ratio.low, "high": ratio.high},
        "points": points,
    }


def draw_forecast(found: Mapping[str, Any], file: Path, *, title: str) -> None:
    """Draw the expected perplexity over the reduction, a line a form of factors, with the span of its ratio.

    :param found: what :func:`forecast` gives.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for form in dict.fromkeys(point["factors"] for point in found["points"]):
        own = [point for point in found["points"] if point["factors"] == form]
        places = [100 * point["reduction"] for point in own]
        axes.plot(places, [point["perplexity"]["middle"] for point in own], marker="o", label=f"{form} factors")
        low, high = ([point["perplexity"][end] for point in own] for end in ("low", "high"))
        axes.fill_between(places, low, high, alpha=0.2)
    dense = found["dense"]["perplexity"]
    axes.axhline(dense, linestyle="--", color="grey", label=f"dense ({dense:.2f})")
    axes.set(xlabel="parameters removed, %", ylabel="expected perplexity of the start", yscale="log", title=title)
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(file, dpi=120)


def _given(values: Mapping[str, Sequence[float]]) -> Any:
    return lambda names: {name: values[name] for name in names}


def _point(form: FactorForm, reduction: float, predicted: float, loss: float, ratio: Ratio) -> dict[str, Any]:
    expected = {"middle": ratio.middle * predicted, "low": ratio.low * predicted, "high": ratio.high * predicted}
    return {
        "factors": form.name,
        "reduction": reduction,
        "predicted_loss_rise": predicted,
        "expected_loss_rise": expected,
        "perplexity": {name: math.exp(min(loss + rise, 700.0)) for name, rise in expected.items()},
    }
