"""Hash a loaded model and its tokenizer: the same wherever they were loaded from."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lillama.core.provenance import digest

# Of a configuration: where it came from and how it was saved, not what the model computes.
NOT_COMPUTED = (
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map"),
    *("quantization_config", "dtype", "torch_dtype"),  # the weights' own names, shapes and dtypes say these
)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer of a model, with its name, shape and dtype, and of its configuration."""
    found = hashlib.sha256(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        for part in _parts(value):
            found.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _settings(model: Any) -> dict[str, Any]:
    config = getattr(model, "config", None)
    values = {} if config is None else config.to_dict()
    return {key: value for key, value in values.items() if key not in NOT_COMPUTED}


def _parts(value: Any) -> Iterator[Tensor]:
    """Yield a tensor itself, or the plain ones that a quantized one is made of."""
    if not isinstance(value, Tensor):
        return
    if hasattr(value, "__tensor_flatten__") and type(value) is not Tensor:
        names, _ = value.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(value, name))
        return
    yield value


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's rules, its chat template and its special tokens."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    known = sorted(tokenizer.get_vocab().items()) if core is None else json.loads(core.to_str())
    # A call changes these two.
    rules = {key: value for key, value in dict(known).items() if key not in ("padding", "truncation")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return digest([rules, getattr(tokenizer, "chat_template", None), special])
