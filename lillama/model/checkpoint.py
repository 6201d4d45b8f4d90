"""A compressed model as a Hugging Face folder: safetensors, tokenizer, generation config, plan and model card."""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from lillama.core.errors import ConfigError, WriteError, disk_trouble
from lillama.core.half_written import whole
from lillama.core.results import write_json
from lillama.model.lowrank import METHOD, mark, register
from lillama.model.reading import quantization_of, unreadable
from lillama.model.surgery import low_rank_config
from lillama.model.task import AUTO_CLASSES, task_of_architecture
from lillama.model.whole import load_whole

HUB_OPTIONS = ("trust_remote_code", "revision", "token", "subfolder", "cache_dir", "local_files_only")


def save_checkpoint(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    plan: Mapping[str, Any],
    card: str,
    without_bias: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write a compressed model so that ``from_pretrained`` loads it; the folder is there whole or not at all.

    :param model: a model whose matrices named in ``plan["ranks"]`` are low-rank. :param tokenizer: its tokenizer or
        processor. :param card: the text of README.md. :param overwrite: whether a folder that is there, with all
        that it holds, is replaced. :param options: passed on to ``model.save_pretrained``, for instance
        ``max_shard_size``.
    :raises ConfigError: where the folder is there and not empty.
    :raises WriteError: where the disk takes no more.
    """
    mark(model, low_rank_config(model, plan["ranks"], without_bias=without_bias))
    save_loaded(model, tokenizer, folder, plan=plan, card=card, overwrite=overwrite, **options)


def save_loaded(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    plan: Mapping[str, Any] | None,
    card: str,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write a model as ``from_pretrained`` gave it, dense or compressed; the folder is there whole or not at all.

    :param plan: of a compressed one, where it is known. The other parameters are those of :func:`save_checkpoint`.
    """
    if not overwrite and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise ConfigError(f"{folder}: is there already; remove it, choose another folder, or give overwrite=True")
    try:
        with whole(folder) as temporary:
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary, **options)
            tokenizer.save_pretrained(temporary)
            if plan is not None:
                write_json(temporary / "plan.json", plan)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise WriteError(f"{folder}: the checkpoint cannot be written ({reason})") from None


def check_saveable(model: Any, tokenizer: Any) -> None:
    """Save all of a checkpoint but its weights and throw it away: what cannot be saved shows before the long work.

    :raises ConfigError: for a generation config, a tokenizer or a processor that transformers refuses to write, and for
        a configuration that it writes and cannot make a model of (the text part of Emu3).
    """
    _check_loadable(model)
    with tempfile.TemporaryDirectory(prefix="lillama-") as folder:
        try:
            model.config.save_pretrained(folder)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # noqa: BLE001 - each part checks itself in its own way
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"model: a checkpoint of it cannot be saved ({reason}); mend its files, or set save_checkpoint=false"
            ) from None


def _check_loadable(model: Any) -> None:
    saved = copy.copy(model.config)
    saved.architectures = [type(model).__name__]
    auto = AUTO_CLASSES[task_of_architecture(saved)]
    if type(saved) not in auto._model_mapping and not hasattr(saved, "auto_map"):
        own = f"{auto.__name__} knows no {type(saved).__name__}"
        raise ConfigError(f"model={type(model).__name__}: a checkpoint of it cannot be loaded (transformers' {own})")


def load_checkpoint(
    folder: str | Path, *, auto: Any = None, quantization_config: Any = None, **options: Any
) -> nn.Module:
    """Return the compressed model of a folder: what ``from_pretrained`` gives, with every weight accounted for.

    :param auto: a transformers Auto class; the one of the saved model where nothing is said.
    :param quantization_config: a stock quantizer for the factors (``TorchAoConfig``, ``BitsAndBytesConfig``);
        transformers' own ``from_pretrained`` takes none beside the low-rank format.
    :param options: passed on to ``from_pretrained``.
    :raises ConfigError: (a ValueError) for a folder that is no whole compressed checkpoint; it names what is damaged, a
        weight that is missing, unknown, of another shape, NaN or infinite: never a randomly filled one.
    """
    register()
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    with unreadable(f"{folder}: cannot be loaded"):
        config = AutoConfig.from_pretrained(folder, **hub)
        if quantization_of(config) != METHOD:
            raise ConfigError("holds no compressed model: its config.json names no ranks")
        if quantization_config is not None:
            if "stock" in config.quantization_config:
                raise ConfigError("its factors are quantized already")
            config.quantization_config |= {"stock": quantization_config}
        chosen = auto or AUTO_CLASSES[task_of_architecture(config)]
        return load_whole(chosen, str(folder), part=auto is not None, config=config, **options).eval()


def check_space(folder: Path, parameters: int, dtype: torch.dtype) -> None:
    """Raise a :class:`ConfigError` where the disk has no room for a checkpoint of this many parameters."""
    needed = int(1.1 * parameters * dtype.itemsize)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"hydra.run.dir={folder}: the checkpoint needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free;"
            " choose another folder, or save_checkpoint=false"
        )
