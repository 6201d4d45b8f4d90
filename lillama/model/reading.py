"""Tell what a folder of weights is before they are loaded, and say in one line why it cannot be read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lillama.core.errors import ConfigError
from lillama.core.results import read_json
from lillama.model.lowrank import METHOD

ADAPTER = "adapter_config.json"
# What quantizers leave beside weights whose config.json may say nothing: AutoGPTQ, AutoAWQ, ModelOpt, HQQ, Quanto.
QUANTIZED_BESIDE = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "qmodel.pt": "HQQ",
    "quanto_qmap.json": "Quanto",
}
# Where config.json says it: transformers, older compressed-tensors, MLX.
ENTRIES = ("quantization_config", "compression_config", "quantization")
LONGEST = 300  # characters of another library's message


@contextmanager
def unreadable(what: str) -> Iterator[None]:
    """Turn whatever a library raises at a damaged model into a :class:`ConfigError` of one line.

    Each family and each file format fails in its own way. Too little memory stays what it is.

    :param what: begins the line, for instance ``model.path=FOLDER: cannot be loaded``.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        said = one_line(error) or type(error).__name__
        named = said if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {said}"
        raise ConfigError(f"{what} ({named})") from None


def one_line(error: Exception) -> str:
    """Return the message of an error without line breaks, cut where it is long."""
    return " ".join(str(error).split())[:LONGEST]


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory, of a device or of the host, does not suffice."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error).lower() for words in OUT_OF_MEMORY)


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate", "not enough memory", "alloc_failed")


def check_no_adapter(place: Path | None, path: str) -> None:
    """Raise a :class:`ConfigError` for the folder of a PEFT adapter, which holds no model.

    :param place: the local folder; None for a Hub id. :param path: what the user gave.
    """
    if place is None or not (place / ADAPTER).is_file():
        return
    try:
        base = read_json(place / ADAPTER).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ConfigError(
        f"model.path={path}: is a PEFT adapter of {base or 'another model'}; give a merged model:"
        f" PeftModel.from_pretrained(base, {path!r}).merge_and_unload().save_pretrained(FOLDER), and its tokenizer"
    )


def check_not_quantized(architecture: Any, place: Path | None, path: str) -> None:
    """Raise a :class:`ConfigError` for weights that a quantizer has packed: a matrix must be a matrix to be factorised.

    Our own format, which transformers counts among them, passes.

    :param architecture: the model's configuration. :param place: the local folder; None for a Hub id.
    """
    method = quantization_of(architecture)
    if method is None and place is not None:
        method = next((name for file, name in QUANTIZED_BESIDE.items() if (place / file).is_file()), None)
    if method not in (None, METHOD):
        raise ConfigError(
            f"model.path={path}: its weights are quantized ({method}); give the original weights, or load them with"
            " transformers, call dequantize() and save that"
        )


def quantization_of(architecture: Any) -> str | None:
    """The method by which a configuration says that its weights are quantized, with the bits where it knows them.

    A model of several parts may say it of its text part alone.
    """
    parts = [architecture, *([architecture.get_text_config()] if hasattr(architecture, "get_text_config") else [])]
    for known in (getattr(part, entry, None) for part in parts for entry in ENTRIES):
        if not known:
            continue
        values = known if isinstance(known, Mapping) else vars(known) if hasattr(known, "__dict__") else {}
        method = getattr(values.get("quant_method"), "value", values.get("quant_method"))
        if method == METHOD:
            return METHOD
        bits = next((f"{n} bit" for n in (4, 8) if values.get(f"load_in_{n}bit") or values.get("bits") == n), None)
        return ", ".join(filter(None, [str(method or "bitsandbytes or another"), bits]))
    return None
