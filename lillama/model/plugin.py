"""How transformers loads and saves a compressed model: a quantizer plugin, registered when lillama is imported.

``config.json`` holds ``quantization_config = {quant_method: lillama, format_version, linear: {module: rank}}``. On
load, the plugin replaces the named linears on the meta device before the weights arrive; the model class stays the
native one. On save it adds a zero-size tensor under a compressed module's dense name, so that a reader without the
plugin fails instead of filling the missing weights at random.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lillama.model.surgery import empty_low_rank

METHOD = "lillama"
FORMAT_VERSION = 1


class LowRankConfig(QuantizationConfigMixin):
    """The ranks of a compressed model, as ``config.json`` holds them.

    :raises ValueError: for a checkpoint of a newer format.
    """

    def __init__(
        self,
        linear: Mapping[str, int] | None = None,
        without_bias: bool = False,
        format_version: int = FORMAT_VERSION,
        **_: Any,
    ) -> None:
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format_version {format_version}; this lillama reads up to {FORMAT_VERSION}:"
                " upgrade it"
            )
        self.quant_method: Any = METHOD
        self.format_version = format_version
        self.linear = dict(linear or {})
        self.without_bias = without_bias


class LowRankQuantizer(HfQuantizer):
    """Swaps the named linears for low-rank ones before weights are loaded."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        config = self.quantization_config
        empty_low_rank(model, config.linear, dropped_biases=config.without_bias)
        _ignore_on_load(model, self.guard)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        return model

    @property
    def guard(self) -> str:
        """The name of the zero-size tensor; the same whatever the order of the ranks (``config.json`` sorts them)."""
        return f"{min(self.quantization_config.linear)}.weight"

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return {**model.state_dict(), self.guard: torch.empty(0)}, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _ignore_on_load(model: Any, name: str) -> None:
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or set()
    model._keys_to_ignore_on_load_unexpected = {*known, f"^{re.escape(name)}$"}


def register() -> None:
    """Make transformers know compressed checkpoints; a second call does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(LowRankConfig)
        register_quantizer(METHOD)(LowRankQuantizer)


def mark(model: Any, ranks: Mapping[str, int], *, without_bias: bool = False) -> None:
    """Mark a model compressed in memory, so that its ``save_pretrained`` writes a loadable checkpoint."""
    config = LowRankConfig(linear=ranks, without_bias=without_bias)
    model.config.quantization_config = config
    model.hf_quantizer = LowRankQuantizer(config, pre_quantized=True)
