import json

import pytest
import torch
from transformers import AutoTokenizer

from lillama.config import Dtype, ModelConfig, Weights
from lillama.core.cache.folders import MARK
from lillama.core.errors import ConfigError
from lillama.model.gguf_import import imported_gguf
from lillama.model.place import local_place
from lillama.model.source import ModelSource
from lillama.model.targets import model_shape


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    """A local folder in the Hub's layout."""
    place = tmp_path / "hub_layout"
    tiny_model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_a_local_folder_loads_as_the_hub_would(folder, tiny_model, tmp_path):
    config = ModelConfig(name="x", path=str(folder), device="cpu")
    ids = torch.arange(4, 20)[None]
    loaded = ModelSource(config, tmp_path).load()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, tiny_model(ids).logits)
    assert not loaded.training
    assert (
        ModelSource(config, tmp_path).tokenizer("abc").input_ids
        == AutoTokenizer.from_pretrained(folder)("abc").input_ids
    )
    assert model_shape(ModelSource(config, tmp_path).meta) == model_shape(tiny_model)


def test_random_weights_are_seeded_and_have_the_asked_dtype(tiny_config, tmp_path):
    first, same, other = (ModelSource(tiny_config, tmp_path).load(seed=seed) for seed in (0, 0, 1))
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(first(ids).logits, same(ids).logits)
        assert not torch.equal(first(ids).logits, other(ids).logits)
    tiny_config.dtype = Dtype.bfloat16
    assert ModelSource(tiny_config, tmp_path).load().dtype == torch.bfloat16


def test_auto_means_cuda_where_there_is_one(tiny_config, tmp_path):
    tiny_config.device = "auto"
    cuda = torch.cuda.is_available()
    assert ModelSource(tiny_config, tmp_path).device.type == ("cuda" if cuda else "cpu")
    assert ModelSource(tiny_config, tmp_path).dtype == (torch.bfloat16 if cuda else torch.float32)


def test_the_identity_follows_the_content_and_not_the_place(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    before = ModelSource(ModelConfig(name="x", path=str(folder)), tmp_path).identity
    folder.rename(moved)
    assert ModelSource(ModelConfig(name="y", path=str(moved)), tmp_path).identity == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert ModelSource(ModelConfig(name="y", path=str(moved)), tmp_path).identity != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("package://no_such_package/x.gguf", "not installed"),
        ("package://hypothesis/x.gguf", "no such file"),
    ],
)
def test_a_missing_model_is_told_in_one_line(path, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        local_place(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_no_local_place(tmp_path):
    assert local_place("microsoft/phi-2", tmp_path) is None


def test_an_unreadable_gguf_is_told_in_one_line(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match="not a readable GGUF") as caught:
        model_shape(ModelSource(ModelConfig(name="x", path=str(file)), tmp_path).meta)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == [MARK], "no half-written import is left"


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A file, and an import of it that copies its bytes; how often it was imported."""
    imports = []

    def copy(file, folder, key):
        imports.append(file)
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    monkeypatch.setattr("lillama.model.gguf_import._import_gguf", copy)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and weights")
    return file, imports


def test_an_import_is_made_once_and_anew_where_its_bytes_have_changed(gguf, tmp_path, caplog):
    file, imports = gguf
    cache = tmp_path / "cache"
    weights = imported_gguf(file, cache) / "model.safetensors"
    assert imported_gguf(file, cache) == weights.parent
    assert len(imports) == 1
    weights.write_bytes(b"GGUF and poison!"[: len(weights.read_bytes())])
    assert "damaged" not in caplog.text
    assert (imported_gguf(file, cache) / "model.safetensors").read_bytes() == file.read_bytes()
    assert "damaged (model.safetensors was changed)" in caplog.text
    assert len(imports) == 2


def test_an_import_of_another_file_is_not_taken(gguf, tmp_path):
    file, _ = gguf
    cache, other = tmp_path / "cache", tmp_path / "other.gguf"
    other.write_bytes(b"GGUF of another")
    first, second = imported_gguf(file, cache), imported_gguf(other, cache)
    first.rename(cache / "kept")
    second.rename(first)
    assert (imported_gguf(file, cache) / "model.safetensors").read_bytes() == file.read_bytes()


def test_a_folder_for_imports_that_is_anothers_is_named_and_left_alone(gguf, tmp_path):
    cache = tmp_path / "cache"
    (cache / "gguf").mkdir(parents=True)
    (cache / "gguf" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"^cache_dir=.*not made by Lillama") as caught:
        imported_gguf(gguf[0], cache)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (cache / "gguf").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        model_shape(ModelSource(ModelConfig(name="x", path=str(tmp_path)), tmp_path).meta)


def test_an_unknown_architecture_is_refused(tmp_path):
    config = ModelConfig(name="x", weights=Weights.random, architecture={"model_type": "nonsense"})
    with pytest.raises(ConfigError, match="nonsense"):
        model_shape(ModelSource(config, tmp_path).meta)
