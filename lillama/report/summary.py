"""One run in tables for a terminal: what it cost and what it lost, and the ranks of its plan."""

from collections.abc import Iterator
from typing import Any

from lillama.core.numbers import gibibytes, two_decimals, with_span
from lillama.report.tables import measured_tables
from lillama.report.tables.markdown import table


def summary(result: dict[str, Any]) -> str:
    """Summarise a run's costs and losses as tables for a terminal."""
    model = result["settings"].get("model") or {}
    overview = table(("", str(model.get("name", ""))), list(_overview(result)))
    return "\n\n".join([overview, *measured_tables(result["measured"])])


def _overview(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parameters, perplexity, reduction = result["parameters"], result["perplexity"], result["reduction"]
    if parameters:
        yield "parameters", " -> ".join(f"{count:,}" for count in parameters.values())
    if reduction:
        yield "reduction", f"{reduction['realised']:.2%} (requested {reduction['requested']:.2%})"
        yield "matrices", f"{result['matrices']} in {result['blocks']} blocks"
    for name, value in perplexity.items():
        yield f"perplexity {name}", f"{two_decimals(value)} ({result['bits_per_byte'][name]:.4f} bits per byte)"
    if result.get("loss_rise"):
        rises = ", ".join(f"{name} {value:.3f}" for name, value in result["loss_rise"].items())
        yield "rise of the loss at the start", f"{rises} nats"
    if result["tokens"]:
        yield "tokens", f"{result['tokens']:,}"
    if result.get("finetune"):
        yield "fine-tuning", _tuning(result["finetune"])
    yield "seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in result["seconds"].items())
    yield "peak memory", gibibytes(result["peak_memory"])
    if result["peak_device_memory"] is not None:
        yield "peak device memory", gibibytes(result["peak_device_memory"])
    if result["checkpoint"] is not None:
        yield "checkpoint", result["checkpoint"]


def _tuning(found: dict[str, Any]) -> str:
    losses = [loss for _, loss in found["loss"]]
    fell = f", loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else ""
    return f"{found['tokens']:,} tokens in {found['steps']:,} steps, {found['parameters']:,} parameters learnt{fell}"


def plan_table(plan: dict[str, Any]) -> str:
    """The ranks of a ``plan.json``: a table a stack, a row a block, a column a matrix; what is missing stays dense."""
    stacks: dict[str, dict[str, dict[str, int]]] = {}
    for name, rank in plan["ranks"].items():
        stack, block, inner = place_of(name)
        stacks.setdefault(stack, {}).setdefault(block, {})[inner] = rank
    return "\n\n".join(_stack_table(stack, blocks) for stack, blocks in stacks.items())


def forecast_table(found: dict[str, Any]) -> str:
    """The expected perplexity of the start, from the moments alone: a row a reduction, a column a form of factors."""
    points = {(point["factors"], point["reduction"]): point["perplexity"] for point in found["points"]}
    forms = list(dict.fromkeys(form for form, _ in points))
    rows = [
        [f"{reduction:.0%}", *(_expected(points.get((form, reduction))) for form in forms)]
        for reduction in dict.fromkeys(reduction for _, reduction in points)
    ]
    ratio, dense = found["measured_over_predicted"], found["dense"]["perplexity"]
    spread = with_span(**ratio, write=two_decimals)
    note = (
        f"- on the calibration tokens, before training; the rise of the loss is taken as {spread} times the predicted"
    )
    header = [f"smaller, dense {two_decimals(dense)}", *(f"{form} factors" for form in forms)]
    return f"{table(header, rows)}\n\n{note}"


def _expected(perplexity: dict[str, float] | None) -> str:
    if perplexity is None:
        return "out of reach"
    return with_span(**perplexity, write=two_decimals)


def _stack_table(stack: str, blocks: dict[str, dict[str, int]]) -> str:
    matrices = list(dict.fromkeys(inner for ranks in blocks.values() for inner in ranks))
    rows = [[index, *(str(ranks.get(inner, "dense")) for inner in matrices)] for index, ranks in blocks.items()]
    return table([stack or "matrix", *matrices], rows)


def place_of(name: str) -> tuple[str, str, str]:
    """Return a matrix's stack, block and name: ``model.layers.3.mlp.fc1`` is ``model.layers``, ``3``, ``mlp.fc1``.

    One outside of every stack (the embedding, the head) is ``""``, its name, ``rank``.
    """
    parts = name.split(".")
    place = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if place is None:
        return "", name, "rank"
    return ".".join(parts[:place]), parts[place], ".".join(parts[place + 1 :])
