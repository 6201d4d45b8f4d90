"""Import a GGUF file as a Hugging Face folder, once, into the cache."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lillama.config import ModelConfig
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.core.provenance import readable_digest
from lillama.model.gguf import check_all_read, check_unsplit, read_once
from lillama.model.reading import one_line, unreadable
from lillama.model.whole import load_whole

log = logging.getLogger(__name__)
GGUF = "gguf"
GGUF_READERS = ("gguf", "accelerate")


def imported_gguf(file: Path, cache_dir: Path, key: str = ModelConfig.KEY) -> Path:
    """Return a GGUF file as a Hugging Face folder in the cache, dequantised to float32 once and kept by content.

    :raises ConfigError: for a file that is no readable GGUF.
    """
    cache, own = Cache(cache_dir), readable_digest(file, key)[:32]
    try:
        held = cache.made_folder(GGUF, own, "the same import", lambda folder: _import_gguf(file, folder, key))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"cache_dir={cache_dir}: the imported model cannot be kept in {GGUF} ({why})") from None
    return held


def _import_gguf(file: Path, folder: Path, key: str) -> None:
    log.info("importing %s (once; about 20 seconds for 135M parameters)", file.name)
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
