"""Let transformers load and save compressed models: a quantizer plugin that puts factors in the place of matrices.

On load, it replaces the named modules on the meta device before the weights arrive; the model class stays the native
one, and the model an ordinary one from then on. On save, a zero-size tensor stands under each compressed matrix's
dense name, so that a reader without the plugin fails instead of filling the missing weights at random.
"""

import inspect
import re
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AutoHfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from .lillama_checks import check_files, check_finite, check_groups
from .lillama_format import METHOD, LowRankConfig, install, merge, note_tie, share_orders, tied_head

# A checkpoint carries these beside its weights; transformers follows their relative imports.
RUNTIME_FILES = (
    *("lillama_modules.py", "lillama_pivoted.py", "lillama_experts.py", "lillama_checks.py"),
    *("lillama_format.py", "lillama_plugin.py"),
)


class LowRankQuantizer(HfQuantizer):
    """Swaps modules before weights are loaded; a stock quantizer, where there is one, then does its own work."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def __init__(self, quantization_config: LowRankConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        stock = quantization_config.stock
        self.saving: tuple[Path | None, dict[str, Tensor] | None] = (None, None)  # where to, and what was given
        self.stock: Any = None
        if stock is not None:
            self.stock = AutoHfQuantizer.from_config(stock, pre_quantized=isinstance(stock, dict))
            quantization_config.stock = self.stock.quantization_config
            self.pre_quantized = self.stock.pre_quantized

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **options: Any
    ) -> None:
        check_files(checkpoint_files or [], {})
        if self.stock is not None and not self.stock.pre_quantized:
            check_groups(self.quantization_config.linear, self.stock.quantization_config)
        names = install(model, self.quantization_config)
        if not self.pre_quantized or self.stock is None:
            check_files(checkpoint_files or [], stored_shapes(model))
        ignore_on_load(model, self.quantization_config.guards)
        refuse_missing(model, names)
        if self.stock is not None:
            self.stock._process_model_before_weight_loading(model, checkpoint_files=checkpoint_files, **options)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        del model._move_missing_keys_from_meta_to_device
        check_finite(model)
        share_orders(model, self.quantization_config)
        keep_format(model, self)
        if self.stock is not None:
            model.quantization_method = self.stock.quantization_config.quant_method
            return self.stock._process_model_after_weight_loading(model, **options)
        model.is_quantized = False  # an ordinary float model from here on: .half(), Trainer, full fine-tuning
        del model.quantization_method
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_is_quantized"):
                del module.config._is_quantized
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        kept = kept_conversions(weight_conversions, self.quantization_config)
        return kept if self.stock is None else self.stock.update_weight_conversions(kept, model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what is saved; transformers asks in the midst of saving, after it noted the files that were there."""
        state, metadata = (None, {}) if self.stock is None else self.stock.get_state_dict_and_metadata(model)
        folder, given = self.saving
        if folder is not None:
            for name in RUNTIME_FILES:
                shutil.copyfile(Path(__file__).with_name(name), folder / name)
        state = next(found for found in (state, given, model.state_dict()) if found is not None)
        return {**state, **{name: torch.empty(0) for name in self.quantization_config.guards}}, metadata

    def is_serializable(self) -> bool:
        return self.stock is None or self.stock.is_serializable()

    @property
    def is_trainable(self) -> bool:
        return self.stock is None or self.stock.is_trainable

    @property
    def is_compileable(self) -> bool:
        return True

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Return the dense model, in place.

        :raises ValueError: for factors that a stock quantizer has changed, or offloaded ones.
        """
        if self.stock is not None:
            raise ValueError("dequantize() needs the factors as they were before the stock quantizer: load that folder")
        merge(model, self.quantization_config)
        self.remove_quantization_config(model)
        return model if dtype is None else model.to(dtype)


def _delegated(name: str) -> Any:
    """Return the method of a stock quantizer, or of the base class where there is none."""

    def call(self: LowRankQuantizer, *args: Any, **options: Any) -> Any:
        own = getattr(HfQuantizer, name)
        return own(self, *args, **options) if self.stock is None else getattr(self.stock, name)(*args, **options)

    call.__name__ = name
    return call


for _name in (
    "validate_environment",
    "update_dtype",
    "update_device_map",
    "adjust_max_memory",
    "param_needs_quantization",
    "param_element_size",
    "get_new_dtype",
    "get_quantize_ops",
):
    setattr(LowRankQuantizer, _name, _delegated(_name))


def ignore_on_load(model: Any, guards: Iterable[str]) -> None:
    """The guard tensors are no weights."""
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or set()
    stems = "|".join(re.escape(guard.removeprefix(f"{model.base_model_prefix}.")) for guard in guards)
    model._keys_to_ignore_on_load_unexpected = {*known, rf"(^|\.)({stems})$"}


def refuse_missing(model: Any, names: list[str]) -> None:
    """Make loading raise where the checkpoint lacks a weight: transformers would fill it with random numbers.

    Of a model of another class than the saved one, what lies outside of the blocks may be new: another task's head.
    """
    inside = tuple(f"{name}." for name in names)
    own = type(model).__name__ in (model.config.architectures or ())
    allowed = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_missing", None) or ["(?!)"]))

    def needed(key: str) -> bool:
        in_block = any(part.isdigit() for part in key.split("."))
        return key.startswith(inside) or ((own or in_block) and not allowed.search(key))

    def check(self: Any, missing: Any, *rest: Any) -> None:
        lost = sorted(key for key in missing - self.all_tied_weights_keys.keys() if needed(key))
        if lost:
            said = "lacks, or holds in another shape,"
            raise ValueError(f"the checkpoint {said} {len(lost)} weights of the model: {', '.join(lost[:5])}")
        type(self)._move_missing_keys_from_meta_to_device(self, missing, *rest)

    model._move_missing_keys_from_meta_to_device = MethodType(check, model)


def kept_conversions(conversions: Iterable[Any], config: LowRankConfig) -> list[Any]:
    """Weight conversions without those that merge or split what is compressed, or lose a factor's name.

    Renamings stay where a factor that is saved under another name gets its own back.
    """
    linear = [*config.linear, *config.embedding]
    replaced = [f"{name}.weight" for name in linear]
    replaced += [f"{module}.{name}" for module, ranks in config.experts.items() for name in ranks]
    factors = [f"{name}.{factor}.weight" for name in linear for factor in ("A", "B")]

    def drops(conversion: Any) -> bool:
        if isinstance(conversion, WeightConverter):
            return any(_names(target, name) for target in conversion.target_patterns for name in replaced)
        back = conversion.reverse_transform()
        forth = back.reverse_transform()  # one of its own: transformers notes which transforms were of use
        return any(forth.rename_source_key(back.rename_source_key(name)[0])[0] != name for name in factors)

    return [conversion for conversion in conversions if not drops(conversion)]


def _names(pattern: str, name: str) -> bool:
    """Tell whether a pattern of transformers' ends with a part of a name, as the module's of a weight."""
    anything = pattern.replace(r"\1", ".*")
    return re.search(rf"(?:{anything})(?!\w)", name) is not None


def stored_shapes(model: Any) -> dict[str, torch.Size]:
    """The shapes of the weights that a file holds as the model has them: no conversion merges, splits or turns them."""
    converters = [c for c in get_model_conversion_mapping(model) if isinstance(c, WeightConverter)]
    converted = re.compile("|".join(f"(?:{target})" for c in converters for target in c.target_patterns) or "(?!)")
    return {name: value.shape for name, value in model.state_dict().items() if not converted.search(name)}


def keep_format(model: Any, quantizer: LowRankQuantizer) -> None:
    """Make a model's own ``save_pretrained`` (and so ``push_to_hub``) write a whole compressed checkpoint."""
    config = quantizer.quantization_config
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.config.auto_map = {"AutoConfig": f"{Path(RUNTIME_FILES[-1]).stem}.{NativeConfig.__name__}"}
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
    model._weight_conversions = kept_conversions(conversions, config)
    model.save_pretrained = partial(save_with_runtime, model)


def save_with_runtime(model: Any, save_directory: str | Path, *args: Any, **options: Any) -> None:
    """``save_pretrained`` of a compressed model: the files of :mod:`lillama.model.lowrank` lie beside the weights."""
    native = type(model).save_pretrained
    given = inspect.signature(native).bind(model, save_directory, *args, **options).arguments.get("state_dict")
    model.hf_quantizer.saving = (Path(save_directory), given)
    try:
        native(model, save_directory, *args, **options)
    finally:
        model.hf_quantizer.saving = (None, None)


class NativeConfig:
    """Named by ``auto_map`` of a checkpoint: registers the plugin, then hands out the native configuration."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Called by transformers when it loads this class from a checkpoint; nothing to do."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Any:
        """Return the configuration as the installed transformers has it."""
        register()
        return AutoConfig.from_pretrained(folder, **{**options, "trust_remote_code": False})


def register() -> None:
    """Make transformers know compressed checkpoints; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(LowRankConfig)
        register_quantizer(METHOD)(LowRankQuantizer)


def mark(model: Any, config: LowRankConfig) -> None:
    """Mark a model compressed in memory, so that its ``save_pretrained`` writes a loadable checkpoint."""
    for embedding in config.embedding:
        if (head := tied_head(model, embedding)) is not None:
            note_tie(model, embedding, head)
    keep_format(model, LowRankQuantizer(config, pre_quantized=True))
