"""A GGUF file is imported whole, or refused and not kept."""

import numpy as np
import pytest

from lillama.config import ModelConfig
from lillama.core.cache.folders import MARK
from lillama.core.errors import ConfigError
from lillama.model.source import ModelSource
from tests.gguf_files import HIDDEN, write_gguf


def kept(cache):
    return [path for path in (cache / "gguf").iterdir() if path.name != MARK]


def test_a_whole_file_is_imported_and_kept(tmp_path):
    model = ModelSource(ModelConfig(name="x", path=str(write_gguf(tmp_path / "x.gguf")), device="cpu"), tmp_path).load()
    assert model.config.num_hidden_layers == 2
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("x.gguf", {"without": "blk.1.ffn_up.weight"}, r"1 are missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        ("x-00001-of-00003.gguf", {"parts": 3}, "one of the 3 parts of a split GGUF; join them"),
        ("renamed.gguf", {"parts": 2}, "one of the 2 parts"),
        ("x-00002-of-00002.gguf", {}, "one of the 2 parts"),
        ("x.gguf", {"blk__0__attn_q__bias": np.ones(HIDDEN, np.float32)}, r"drops its 1 biases \(blk\.0\.attn_q\.bias"),
        ("x.gguf", {"rope_freqs__weight": np.ones(4, np.float32)}, "does not read its rope_freqs"),
        ("x.gguf", {"output_norm__weight": np.full(HIDDEN, np.nan, np.float32)}, r"model\.norm\.weight holds NaN"),
    ],
    ids=["a missing matrix", "a part", "a renamed part", "a part by its name", "biases", "rotary factors", "NaN"],
)
def test_what_is_not_whole_is_refused(tmp_path, name, changes, said):
    file = write_gguf(tmp_path / name, **changes)
    with pytest.raises(ConfigError, match=said) as caught:
        ModelSource(ModelConfig(name="x", path=str(file), device="cpu"), tmp_path).load()
    assert "\n" not in str(caught.value)
    if "NaN" not in said:
        assert not kept(tmp_path), "what was not whole is not kept"
