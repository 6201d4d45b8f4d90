"""The model that a configuration names: from the Hub, a local folder, a GGUF file, or random of a given shape."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.utils import logging as logging_of_transformers

from lillama.config import Dtype, ModelConfig, Task, Weights
from lillama.core.errors import ConfigError
from lillama.core.hub import offline
from lillama.core.provenance import digest, readable_digest
from lillama.model.architecture import inline_architecture
from lillama.model.blocks import Blocks
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.gguf_import import imported_gguf
from lillama.model.lowrank import METHOD
from lillama.model.lowrank.lillama_checks import check_finite
from lillama.model.offload import offload_blocks
from lillama.model.place import local_place
from lillama.model.reading import check_no_adapter, check_not_quantized, quantization_of, unreadable
from lillama.model.remote_code import code_options
from lillama.model.task import AUTO_CLASSES, task_of
from lillama.model.whole import load_whole


@dataclass(frozen=True)
class ModelSource:
    """Reads what is known of a configured model, each thing once, when it is first asked for.

    Nothing but :meth:`load` reads weights; an inline architecture needs no download.

    :param cache_dir: keeps imported GGUF files.
    """

    config: ModelConfig
    cache_dir: Path

    @cached_property
    def device(self) -> torch.device:
        """Return the device of a run; ``auto`` is CUDA where there is one.

        :raises ConfigError: for CUDA where there is none.
        """
        asked = self.config.device
        # torchrun numbers the processes of a machine: each takes its own GPU.
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        if asked == "auto":
            return torch.device(own if torch.cuda.is_available() else "cpu")
        if asked.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"model.device={asked}: torch sees no CUDA device; use auto or cpu")
        device = torch.device(own if asked == "cuda" else asked)
        if asked != "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
            raise ConfigError(f"model.device={asked}: torch sees {torch.cuda.device_count()} CUDA devices")
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Return the numbers of a run; ``auto`` is bfloat16 on CUDA and float32 on a CPU."""
        if self.config.dtype is Dtype.auto:
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return getattr(torch, self.config.dtype.name)

    @cached_property
    def place(self) -> Path | None:
        """Return the file or folder of the weights; None for a Hub id, or for random weights of an inline architecture.

        :raises ConfigError: for a package that is not installed, or a path that looks local and is not there.
        """
        return None if self.config.path is None else local_place(self.config.path, self.cache_dir, self.config.KEY)

    @cached_property
    def folder(self) -> Path | None:
        """Return what transformers reads: the place, of a GGUF file its import; None where there is no place."""
        return None if self.place is None else self._readable(self.place, self.config.KEY)

    @cached_property
    def identity(self) -> str:
        """Identify the weights, without a local path: a content hash, or a Hub id."""
        config = self.config
        if config.weights is Weights.random:
            return digest(["random", config.architecture])
        return str(config.path) if self.place is None else readable_digest(self.place, config.KEY)

    @cached_property
    def architecture(self) -> Any:
        """Read the transformers configuration.

        :raises ConfigError: for one that cannot be read, an adapter, or weights that are quantised.
        """
        config, path = self.config, str(self.config.path)
        if config.architecture:
            return inline_architecture(config.architecture)
        check_no_adapter(self.place, path)
        architecture = self._from_pretrained(AutoConfig.from_pretrained)
        if config.weights is Weights.pretrained:  # random ones need but the shapes
            check_not_quantized(architecture, self.place, path)
        classes = architecture.architectures
        if not isinstance(classes, list | None):
            raise ConfigError(
                f"model.path={path}: cannot be loaded (architectures must be a list, and is {classes!r:.80})"
            )
        return architecture

    @property
    def task(self) -> Task:
        """Return what the model predicts."""
        return task_of(self.config, self.architecture)

    @property
    def compressed(self) -> bool:
        """Tell whether the weights are low-rank factors already."""
        return quantization_of(self.architecture) == METHOD

    @property
    def positions(self) -> int | None:
        """Return how many positions the model has; None where there is no such limit."""
        return getattr(self.architecture.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def meta(self) -> Any:
        """Make the model without weights, on the meta device: all that a plan needs. It is shared, and for reading."""
        return self.made(torch.device("meta"))

    @cached_property
    def tokenizer(self) -> Any:
        """Read the tokenizer, or a speech model's processor; random weights without one have one token a byte."""
        if self.config.weights is Weights.random and self.config.tokenizer is None:
            return byte_tokenizer()
        auto: Any = AutoProcessor if self.task is Task.speech_seq2seq else AutoTokenizer
        return self._from_pretrained(auto.from_pretrained, path=self.config.tokenizer)

    def same_vocabulary(self, other: "ModelSource") -> bool:
        """Compare the tokens of two models; of speech models, those that they say."""
        own, others = (getattr(source.tokenizer, "tokenizer", source.tokenizer) for source in (self, other))
        return own.get_vocab() == others.get_vocab()

    def check_dense(self) -> None:
        """Raise a :class:`ConfigError` where the weights are low-rank factors already."""
        if self.compressed:
            path = self.config.path
            raise ConfigError(f"model.path={path}: is compressed already; model.dequantize() gives a dense one")

    def made(self, device: torch.device, *, seed: int | None = None, **options: Any) -> Any:
        """Make the model from its architecture alone, with weights as transformers begins a training with."""
        config, task, architecture = self.config, self.task, self.architecture  # a GGUF's needs real tensors
        if seed is not None:
            torch.manual_seed(seed)
        with unreadable(f"model={config.name}: cannot be made as {task.name}"), device:
            return AUTO_CLASSES[task].from_config(architecture, trust_remote_code=config.trust_remote_code, **options)

    def load(self, *, seed: int = 0) -> nn.Module:
        """Return the model in evaluation mode, on its device and in its dtype, with every weight accounted for.

        :param seed: of random weights.
        :raises ConfigError: for weights that are missing, left over, of another shape, NaN or infinite; it names one.
        """
        config = self.config
        home = torch.device("cpu") if config.offload else self.device
        if config.weights is Weights.random:
            model = self.made(home, seed=seed, dtype=self.dtype)
        else:
            model = self._from_pretrained(partial(load_whole, AUTO_CLASSES[self.task]), dtype=self.dtype).to(home)
        with unreadable(f"model={config.name}: cannot be used" if config.path is None else f"model.path={config.path}"):
            check_finite(model)
        if config.offload:
            blocks = Blocks(model)
            offload_blocks(model, [blocks[index] for index in range(len(blocks))], self.device)
        return model.eval().requires_grad_(False)

    def _from_pretrained(self, read: Callable[..., Any], path: str | None = None, **options: Any) -> Any:
        """``read`` the configured place, as ``from_pretrained`` does; whatever it cannot read becomes one line.

        :param path: of the tokenizer, where it is not the model's own.
        """
        config = self.config
        wanted, key = path or str(config.path), config.KEY if path is None else "model.tokenizer"
        if path is None:
            place = self.folder
        elif (place := local_place(path, self.cache_dir, key)) is not None:
            place = self._readable(place, key)
        revision = config.revision if wanted == config.path else None
        options |= code_options(config, wanted, place, key)
        downloaded_only = place is None and offline(wanted, key, revision=revision)
        why = "not here, not downloaded before, and the Hub does not answer" if downloaded_only else "cannot be loaded"
        with unreadable(f"{key}={wanted}: {why}"):
            return read(str(place or wanted), revision=revision or "main", local_files_only=downloaded_only, **options)

    def _readable(self, place: Path, key: str) -> Path:
        return imported_gguf(place, self.cache_dir, key) if place.is_file() else place


def show_progress(on: bool) -> None:
    """Set whether transformers draws its own progress bars."""
    (logging_of_transformers.enable_progress_bar if on else logging_of_transformers.disable_progress_bar)()
