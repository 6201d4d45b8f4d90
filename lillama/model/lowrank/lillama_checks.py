"""Find out what is wrong with a compressed checkpoint before, or as, its weights are loaded.

Each check raises a ValueError that names the file, the entry of ``config.json`` or the weight: transformers itself
would fail with a KeyError, or go on with random numbers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DAMAGED = "quantization_config of the compressed checkpoint is damaged"


def check_ranks(key: str, ranks: Any) -> dict[str, int]:
    """Return a mapping of module names to ranks as it stands in ``config.json``.

    :raises ValueError: for anything else; it names the entry.
    """
    if not isinstance(ranks, Mapping):
        raise ValueError(f"{DAMAGED}: {key} must map names to ranks, and is {ranks!r:.80}")
    for name, rank in ranks.items():
        if not isinstance(name, str) or not is_count(rank):
            raise ValueError(f"{DAMAGED}: {key}[{name!r}] must be a positive integer, and is {rank!r:.80}")
    return dict(ranks)


def is_count(value: Any) -> bool:
    """Tell a positive integer from everything else that JSON may hold; true and 3.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_fit(name: str, rank: int, shape: Iterable[int]) -> None:
    """Raise a ValueError for a rank that no matrix of this shape has.

    :param shape: of the dense matrix, either way round; of experts that of one.
    """
    if rank > min(shape):
        raise ValueError(f"{DAMAGED}: rank {rank} of {name} is larger than its matrix {list(shape)}")


def check_files(files: Iterable[str], shapes: Mapping[str, Iterable[int]]) -> None:
    """Raise a ValueError that names a file which is cut short or no safetensors file, or a weight of another shape.

    :param shapes: of the model's weights; names that a file does not hold, or holds besides, are not looked at.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found = {name: opened.get_slice(name).get_shape() for name in shapes.keys() & set(opened.keys())}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: not a whole safetensors file ({error})") from None
        for name, shape in sorted(found.items()):
            if shape != list(shapes[name]):
                raise ValueError(f"{file}: the weight {name} has the shape {shape}, not {list(shapes[name])}")


def check_finite(model: Any) -> None:
    """Raise a ValueError that names the first weight which holds NaN or infinity.

    Weights are read one at a time, without a copy: a mapped one is let go of again.
    """
    for name, value in model.named_parameters():
        if not is_finite(value):
            raise ValueError(f"the weight {name} holds NaN or infinity ({str(value.dtype).removeprefix('torch.')})")
    for name, value in model.named_buffers():
        if value.is_floating_point() and not value.is_meta and bool(value.isnan().any()):
            raise ValueError(f"the buffer {name} holds NaN")


@torch.no_grad()
def is_finite(value: Tensor) -> bool:
    """Look for NaN and infinity by the extremes, which takes one pass and no memory of the tensor's size.

    What is not there (meta) and what a quantizer has packed counts as finite.
    """
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.is_floating_point() and not value.is_meta
    if not plain or value.numel() == 0:
        return True
    value = value.detach()
    low, high = (value if value.element_size() > 1 else value.to(torch.bfloat16)).aminmax()
    return bool(low.isfinite() & high.isfinite())


def check_groups(ranks: Mapping[str, int], stock: Any) -> None:
    """Raise a ValueError where a quantizer's groups do not divide the ranks: it would leave those factors as they are.

    :param stock: the configuration of the quantizer; most know no groups.
    """
    size = group_size(stock)
    left_out = tuple(getattr(stock, "modules_to_not_convert", None) or ())
    wrong = {name: rank for name, rank in ranks.items() if size and rank % size and not name.endswith(left_out)}
    if wrong:
        name, rank = next(iter(wrong.items()))
        raise ValueError(
            f"groups of {size} do not divide the ranks of {len(wrong)} of {len(ranks)} matrices"
            f" (rank {rank} of {name}); quantize in groups that do, or compress with strategy.round_to={size}"
        )


def group_size(stock: Any) -> int | None:
    """Read the size of a quantizer's groups along a row: GPTQ, AWQ and HQQ say it themselves, torchao's inner one."""
    inner = getattr(stock, "quant_type", None)
    places = (stock, inner, *(getattr(inner, name, None) for name in ("granularity", "weight_granularity")))
    sizes = (getattr(place, "group_size", None) for place in places)
    return next((size for size in sizes if is_count(size)), None)
