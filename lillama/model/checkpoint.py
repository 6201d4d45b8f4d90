"""A compressed model as a Hugging Face folder: safetensors, tokenizer, generation config, plan and model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lillama.errors import ConfigError
from lillama.model.plugin import mark, register
from lillama.results import write_json


def save_checkpoint(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    plan: Mapping[str, Any],
    card: str,
    without_bias: bool = False,
) -> None:
    """Write a compressed model so that ``from_pretrained`` loads it; the folder is there whole or not at all.

    :param model: a model whose linears named in ``plan["ranks"]`` are low-rank. :param card: the text of README.md.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    mark(model, plan["ranks"], without_bias=without_bias)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "plan.json", plan)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(folder: str | Path, **options: Any) -> nn.Module:
    """The compressed model of a folder; the same as ``AutoModelForCausalLM.from_pretrained`` after ``import lillama``.

    :raises ValueError: where a weight is missing, unknown or of another shape: never a randomly filled one.
    """
    register()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, report = loaded
    wrong = {
        kind: sorted(map(str, report[kind]))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report[kind]
    }
    if wrong:
        raise ValueError(f"{folder}: the weights do not fit the model: {wrong}")
    return model.eval()


def check_space(folder: Path, parameters: int, dtype: torch.dtype) -> None:
    """Raise a :class:`ConfigError` where the disk has no room for a checkpoint of this many parameters."""
    needed = int(1.1 * parameters * dtype.itemsize)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"hydra.run.dir={folder}: the checkpoint needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free;"
            " choose another folder, or save_checkpoint=false"
        )
