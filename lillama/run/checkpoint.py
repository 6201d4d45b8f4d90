"""``python -m lillama checkpoint pivot IN OUT``: a checkpoint with its factors pivoted, in fewer numbers."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lillama.config import FactorForm
from lillama.core.errors import BAD_INPUT, ConfigError
from lillama.core.half_written import whole
from lillama.core.results import read_json, write_json

PLAN, CARD = "plan.json", "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint; 2, with one line, for a folder that cannot be read or written."""
    options = _parser().parse_args(arguments)
    try:
        told = pivot(options.source, options.target)
    except (ConfigError, OSError, LookupError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        return BAD_INPUT
    print(told)
    return 0


def pivot(source: Path, target: Path) -> str:
    """Write a plain checkpoint's function in pivoted factors: whole or not at all; what it comes to, in words.

    Tokenizer and whatever else lies beside the weights come along; the plan and the card say what has changed.

    :raises ConfigError: where ``source`` is no checkpoint of plain factors, or ``target`` is there already.
    """
    _check(source, target)
    from lillama.model.checkpoint import load_checkpoint
    from lillama.model.lowrank.lillama_modules import ORDER
    from lillama.model.pivoting import pivot_model

    model: Any = load_checkpoint(source, dtype="auto")
    before = sum(parameter.numel() for parameter in model.parameters())
    pivot_model(model)
    after = sum(parameter.numel() for parameter in model.parameters())
    integers = sum(value.numel() for name, value in model.state_dict().items() if name.rpartition(".")[2] in ORDER)
    with whole(target) as temporary:
        model.save_pretrained(temporary)
        _bring_along(source, temporary)
        _tell(temporary, before, after, integers)
    return f"{target}: {after:,} parameters, {before:,} before ({1 - after / before:.1%} fewer)"


def _check(source: Path, target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target}: is there already; give another folder, or remove it")
    try:
        told = json.loads((source / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: no checkpoint ({error})") from None
    if told.get("quant_method") != "lillama":
        raise ConfigError(f"{source}: has no low-rank factors; this is a dense model")
    if "stock" in told:
        raise ConfigError(f"{source}: its factors are quantized; convert the checkpoint from before that")
    if told.get("factors", FactorForm.plain.name) != FactorForm.plain.name:
        raise ConfigError(f"{source}: its factors are {told['factors']} already")


def _bring_along(source: Path, target: Path) -> None:
    """Copy what is neither a weight nor written anew."""
    for file in source.iterdir():
        weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.is_file() and not weights and not (target / file.name).exists():
            shutil.copy2(file, target / file.name)


def _tell(folder: Path, before: int, after: int, integers: int) -> None:
    """Have the plan and the card say how the factors are stored, and in how many numbers."""
    if (folder / PLAN).is_file():
        from lillama.strategy.plan import RankPlan

        known = read_json(folder / PLAN)
        plan = replace(RankPlan.from_dict(known), factors=FactorForm.pivoted, parameters=after, indices=integers)
        write_json(folder / PLAN, {**known, **plan.as_dict()})
    if (folder / CARD).is_file():
        said = (
            f"\n## Pivoted factors\n\nThe factors were pivoted after the figures above: the same function in {after:,}"
            f" parameters instead of {before:,}, with {integers:,} integers beside them.\n"
        )
        with (folder / CARD).open("a", encoding="utf-8") as card:
            card.write(said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lillama checkpoint", description="Convert a compressed checkpoint."
    )
    commands = parser.add_subparsers(dest="command", metavar="pivot", required=True)
    words = "store plain factors pivoted: the same function in fewer numbers (factors=pivoted)"
    converting = commands.add_parser("pivot", help=words, description=words)
    converting.add_argument("source", type=Path, metavar="IN", help="the folder of a checkpoint of plain factors")
    converting.add_argument("target", type=Path, metavar="OUT", help="a folder that is not there yet")
    return parser


if __name__ == "__main__":
    sys.exit(main())
