"""Perplexity on texts of several kinds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from lillama.config import DomainsConfig, domain_key
from lillama.core.cache import Cache
from lillama.evaluate.known import KnownPerplexities
from lillama.evaluate.measure import Figures, Given, Measure
from lillama.evaluate.perplexity import MeasuredText, check_window, measured_text, text_perplexity
from lillama.model.limits import check_tokens


@dataclass(frozen=True, slots=True)
class Domains(Measure):
    """``stages=[domains]``; what the cache has of a model is not measured again."""

    config: DomainsConfig
    texts: Mapping[str, MeasuredText]
    cache: Cache
    progress: bool

    @classmethod
    def read(cls, given: Given) -> "Domains":
        """Read the texts, and compare their tokens and windows with the model."""
        config, texts = given.config.domains, {}
        for name, own in config.texts.items():
            key = domain_key(name)
            texts[name] = text = measured_text(own, given.tokenizer, key)
            check_window(own, text, given.limits, key)
            check_tokens(key, text.ids, given.limits, given.tokenizer)
        return cls(config, texts, given.cache, given.progress)

    def measure(self, model: nn.Module, *, dense: Figures | None, note: Callable[[Figures], None]) -> Figures:
        """Measure the perplexity and the bits per byte of every text."""
        found: Figures = {}
        known = KnownPerplexities(model, self.cache)
        for name, text in self.texts.items():
            settings = self.config.texts[name]
            value = known.find(
                name, text, settings, partial(text_perplexity, model, text, settings, progress=self.progress)
            )
            found[name] = {"perplexity": value, "bits_per_byte": text.bits_per_byte(value), "tokens": len(text)}
        return found


def loss_rise(dense: Figures, compressed: Figures) -> float:
    """Return the mean rise of the loss over the texts, in nats per token."""
    rises = [math.log(compressed[name]["perplexity"] / dense[name]["perplexity"]) for name in compressed]
    return sum(rises) / len(rises)
