"""A perplexity that was measured before is not measured again; anything that changes it is."""

from dataclasses import replace

import pytest
import torch

from lillama.config import PerplexityConfig, Source
from lillama.core.cache import Cache
from lillama.evaluate.known import KnownPerplexities
from lillama.evaluate.perplexity import MeasuredText

TEXT = MeasuredText(torch.arange(4, 68), 64)
WINDOWS = PerplexityConfig(source=Source.local, path="text.jsonl", seq_len=16)


def find(model, cache, value, text=TEXT, windows=WINDOWS):
    """What is known, or the value that a measurement would give."""
    return KnownPerplexities(model, cache).find("a text", text, windows, lambda: value)


def test_it_is_measured_once_for_as_long_as_nothing_changes(tiny_model, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert find(tiny_model, cache, 0.1 + 0.2) == 0.1 + 0.2
    assert find(tiny_model, cache, 5.0) == 0.1 + 0.2, "to the last bit, and not measured again"
    assert find(tiny_model, cache, 6.0, text=MeasuredText(TEXT.ids.flip(0), 64)) == 6.0
    assert find(tiny_model, cache, 7.0, windows=replace(WINDOWS, seq_len=32)) == 7.0
    assert find(tiny_model, cache, 8.0, windows=replace(WINDOWS, stride=8)) == 8.0
    with torch.no_grad():
        tiny_model.lm_head.weight[3, 3] += 1e-3
    assert find(tiny_model, cache, 9.0) == 9.0


def test_what_fails_is_not_kept(tiny_model, tmp_path):
    def fail():
        raise RuntimeError("no memory left")

    cache = Cache(tmp_path / "cache")
    with pytest.raises(RuntimeError):
        KnownPerplexities(tiny_model, cache).find("a text", TEXT, WINDOWS, fail)
    assert find(tiny_model, cache, 4.0) == 4.0
