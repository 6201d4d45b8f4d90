"""Every weight accounted for: nothing that the checkpoint lacks is filled in, nothing that matters is left over."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightRenaming

log = logging.getLogger(__name__)
KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")
# What torch.compile, DDP, DeepSpeed and FSDP put before, or into, the names of what they wrap; Lightning puts `model.`.
INNER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
OUTER = r"^(?:(?:module|_forward_module|_orig_mod)\.)+"
LIGHTNING = r"^model\."
# Tables that older versions of transformers saved as buffers and now compute.
NO_WEIGHTS = re.compile(r"(^|\.)(inv_freq|(cos|sin)_cached|masked_bias|position_ids|(attn|attention)\.bias)$")
NAMED = 3  # how many weights a message names


def load_whole(auto: Any, place: str, *, part: bool = False, **options: Any) -> nn.Module:
    """``auto.from_pretrained``, and an error where it would fill in weights at random or leave some of the file's out.

    Names that a wrapper has prefixed (``_orig_mod.``, ``module.``, ...) are read without the prefix, which is logged.
    What is left over and belongs to no module of the model (another task's head) is logged.

    :param part: the model may lack the saved one's head, or have another: only weights of blocks must fit.
    :raises ValueError: with the names of weights that are missing, left over in a module that the model has, or of
        another shape.
    """
    strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = auto.from_pretrained(place, **options, **strict)
    mapping = _unwrapping(report["missing_keys"], report["unexpected_keys"])
    if mapping:
        del model
        log.warning("%s: the names of its weights carry a wrapper's prefix, which is left out", place)
        model, report = auto.from_pretrained(place, key_mapping=mapping, **options, **strict)
        _forget(model, mapping)
    saved_as = getattr(options.get("config"), "architectures", None) or [type(model).__name__]
    _check(model, report, place, part=part and type(model).__name__ not in saved_as)
    return model


def _unwrapping(missing: set[str], unexpected: set[str]) -> dict[str, str]:
    """The renaming, as transformers takes it, under which what is left over becomes what is missing; {} without one."""
    known = {ending for name in missing for ending in _endings(name)}
    choices = [{OUTER: "", INNER: ""}]
    if not any(name.startswith("model.") for name in missing):
        choices.append({LIGHTNING: "", INNER: ""})
    for mapping in choices:
        renamed = {name: _renamed(name, mapping) for name in unexpected}
        if any(new != old and new in known for old, new in renamed.items()):
            used = {pattern for pattern in mapping if any(re.search(pattern, name) for name in unexpected)}
            return {pattern: "" for pattern in mapping if pattern in used}
    return {}


def _endings(name: str) -> Iterator[str]:
    """Return a name, and what comes after each of its dots: a base model's names lack the first part."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))


def _renamed(name: str, mapping: Mapping[str, str]) -> str:
    for pattern, replacement in mapping.items():
        name = re.sub(pattern, replacement, name)
    return name


def _forget(model: Any, mapping: Mapping[str, str]) -> None:
    """Save the model under its own names: transformers would give the prefix back."""
    kept = getattr(model, "_weight_conversions", None) or []
    ours = [c for c in kept if isinstance(c, WeightRenaming) and set(c._original_source_patterns) <= set(mapping)]
    model._weight_conversions = [conversion for conversion in kept if conversion not in ours]


def _check(model: Any, report: Mapping[str, Any], place: str, *, part: bool) -> None:
    wrong = {kind: sorted(report[kind], key=str) for kind in KINDS}
    modules = {name for name, _ in model.named_modules()}
    unused = [name for name in wrong["unexpected_keys"] if not _has_place(model, modules, name)]
    wrong["unexpected_keys"] = [name for name in wrong["unexpected_keys"] if name not in set(unused)]
    if part:
        wrong = {kind: [key for key in keys if _in_a_block(str(key))] for kind, keys in wrong.items()}
    if any(wrong.values()):
        said = "; ".join(TOLD[kind](keys) for kind, keys in wrong.items() if keys)
        raise ValueError(f"its weights do not fit {type(model).__name__}: {said}")
    if unused:
        log.warning("%s: %d weights are not used by %s: %s", place, len(unused), type(model).__name__, _listed(unused))


def _has_place(model: Any, modules: set[str], name: str) -> bool:
    """Tell whether a left-over weight belongs to a module or a stack of blocks that the model has."""
    if NO_WEIGHTS.search(name):
        return False
    parts, prefix = name.split("."), model.base_model_prefix
    number = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    place = ".".join(parts[:-1] if number is None else parts[:number])
    spellings = {place, place.removeprefix(f"{prefix}."), f"{prefix}.{place}"}  # a base model's lack the prefix
    return bool(place) and not spellings.isdisjoint(modules)


def _in_a_block(key: str) -> bool:
    """Tell whether a weight is a block's; a model of another class than the saved one may have no head."""
    return any(part.isdigit() for part in key.split("."))


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _shapes(keys: list[Any]) -> list[str]:
    return [f"{name} {list(found)}, not {list(wanted)}" for name, found, wanted in keys]


TOLD: Mapping[str, Callable[[list[Any]], str]] = {
    "missing_keys": lambda keys: f"{len(keys)} are missing ({_listed(keys)})",
    "unexpected_keys": lambda keys: f"{len(keys)} have no place in it ({_listed(keys)})",
    "mismatched_keys": lambda keys: f"{len(keys)} are of another shape ({_listed(_shapes(keys))})",
}
