"""Keep the perplexities of a model's texts by content: a sweep measures its dense model once."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lillama.config import PerplexityConfig
from lillama.core.cache import Cache
from lillama.core.provenance import digest
from lillama.core.version import __version__
from lillama.evaluate.perplexity import MeasuredText
from lillama.model.identity import weights_digest

log = logging.getLogger(__name__)
KIND = "scores"


class KnownPerplexities:
    """Looks up one model's perplexities by its weights, a text's tokens, their windows and the package's version."""

    def __init__(self, model: nn.Module, cache: Cache) -> None:
        self.cache = cache
        self._weights = weights_digest(model)

    def find(self, name: str, text: MeasuredText, settings: PerplexityConfig, measure: Callable[[], float]) -> float:
        """Return the perplexity of a text that was measured before, or measure and keep it.

        :param name: what a person calls the text. :param measure: raises whatever it likes; nothing is kept then.
        """
        tokens = hashlib.sha256(text.ids.numpy().data).hexdigest()
        windows = [settings.seq_len, settings.stride]
        key = digest(["perplexity", __version__, self._weights, tokens, windows])[:32]
        known = self.cache.read(KIND, key, _read)
        if known is not None:
            log.info("perplexity: %s has been measured already", name)
            return known
        value = measure()
        self.cache.write(KIND, key, json.dumps(value).encode())
        return value


def _read(file: Path) -> float:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, float):
        raise TypeError(f"{value!r} is no perplexity")
    return value
