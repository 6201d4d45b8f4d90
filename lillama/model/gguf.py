"""Find out whether a GGUF file holds a whole model, and whether transformers has read all of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lillama.core.errors import ConfigError

SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
BIAS = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.bias")


@contextmanager
def read_once() -> Iterator[None]:
    """Have the package gguf read each file, and make each map of names, once.

    transformers reads the file four times, and makes the map for every module of the model: most of an import.
    """
    import gguf

    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in plain.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in plain.items():
            setattr(gguf, name, function)


def check_unsplit(file: Path, reader: Any) -> None:
    """Raise a :class:`ConfigError` for a part of a split GGUF: transformers would fill in the others at random.

    :param reader: a ``gguf.GGUFReader`` of the file; a renamed part still says what it is.
    """
    field = reader.get_field("split.count")
    named = SPLIT_NAME.search(file.name)
    parts = int(field.contents()) if field is not None else int(named[2]) if named else 1
    if parts > 1:
        raise ConfigError(
            f"model.path={file}: is one of the {parts} parts of a split GGUF; join them first:"
            " llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )


def check_all_read(file: Path, reader: Any, model: Any) -> None:
    """Raise a :class:`ConfigError` for biases or rotary factors that the model made from a GGUF has no place for.

    :param model: as transformers has loaded it: of some families it knows no biases in a GGUF, and drops them; the
        scaling of rotary frequencies (Llama 3.1) it never reads.
    """
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ConfigError(f"model.path={file}: transformers does not read its rope_freqs.weight; give original weights")
    held = sorted(tensor.name for tensor in reader.tensors if BIAS.fullmatch(tensor.name))
    biased = sum(name.endswith("bias") for name, _ in model.named_parameters())
    if held and not biased:
        raise ConfigError(f"model.path={file}: transformers drops its {len(held)} biases ({held[0]}, ...)")
