"""What people do with a transformers checkpoint, done with ours."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from lillama import load_checkpoint, save_checkpoint
from lillama.config import FactorForm
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.lowrank import RUNTIME_FILES, LowRank, LowRankEmbedding
from tests.ecosystem.conftest import make_checkpoint
from tests.families import batch_for, tiny
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of


def low_rank_count(model):
    return sum(isinstance(module, LowRank) for module in model.modules())


@torch.no_grad()
def test_the_base_model_alone(saved):
    base = AutoModel.from_pretrained(saved.folder)
    hidden = saved.model.model(saved.ids).last_hidden_state
    torch.testing.assert_close(base(saved.ids).last_hidden_state, hidden, atol=1e-5, rtol=1e-5)
    assert low_rank_count(base) == low_rank_count(saved.model)


@torch.no_grad()
def test_the_base_model_saved_by_itself_finds_its_way_back(saved, tmp_path):
    AutoModel.from_pretrained(saved.folder).save_pretrained(tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"lm_head.weight"}, "the base model has no head; nothing else is lost"
    again = model.model(saved.ids).last_hidden_state
    torch.testing.assert_close(again, saved.model.model(saved.ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ends", [False, True])
@torch.no_grad()
def test_sequence_classification_with_a_new_head(ends, tmp_path):
    """Where the head itself is low-rank, a model without it goes without its factors too."""
    saved = make_checkpoint("llama", tmp_path / "a", ends=ends)
    options = {"num_labels": 3, "output_loading_info": True}
    model, report = AutoModelForSequenceClassification.from_pretrained(saved.folder, **options)
    assert report["missing_keys"] == {"score.weight"}
    assert all(name.startswith("lm_head.") for name in report["unexpected_keys"])
    assert low_rank_count(model) == low_rank_count(saved.model) - ends
    model.save_pretrained(tmp_path / "b")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert torch.equal(model(saved.ids).logits, again(saved.ids).logits)


def test_pipeline_and_generate(saved):
    text = pipeline("text-generation", model=str(saved.folder))("hello", max_new_tokens=3)[0]["generated_text"]
    assert text.startswith("hello")
    loaded = AutoModelForCausalLM.from_pretrained(saved.folder)
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(saved.ids, **greedy), saved.model.generate(saved.ids, **greedy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_narrow_dtypes(either, dtype):
    loaded = AutoModelForCausalLM.from_pretrained(either.folder, dtype=dtype)
    wide = AutoModelForCausalLM.from_pretrained(either.folder)
    for name, value in wide.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype if value.is_floating_point() else value.dtype))
    relative = (loaded(either.ids).logits.float() - either.logits).norm() / either.logits.norm()
    assert relative < 0.1
    assert wide.half().dtype == torch.float16


@torch.no_grad()
def test_device_map_and_disk_offload(either, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(either.folder, device_map="auto")
    torch.testing.assert_close(whole(either.ids).logits, either.logits, atol=1e-5, rtol=1e-5)
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.1"), "cpu")
    places |= {"model.layers.0": "disk", "model.layers.2": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    spread = AutoModelForCausalLM.from_pretrained(either.folder, **options)
    assert spread.hf_device_map == places
    torch.testing.assert_close(spread(either.ids).logits, either.logits, atol=1e-5, rtol=1e-5)


def test_full_fine_tuning_through_trainer_saves_and_loads_exactly(either, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(either.folder)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(4, 60, (8, 8))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        log_level="error",
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    loaded = load_checkpoint(tmp_path / "checkpoint-3")
    trained, before = model.state_dict(), either.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())
    changed = {name for name in trained if not torch.equal(trained[name], before[name])}
    assert any(".A." in name for name in changed)
    assert any("norm" in name for name in changed), "everything was trained, not the factors alone"
    with torch.no_grad():
        torch.testing.assert_close(loaded(either.ids).logits, model.eval()(either.ids).logits)


def test_push_to_hub_uploads_the_same_folder(saved, tmp_path, monkeypatch):
    """The network is not there: what would be uploaded is looked at instead."""
    uploaded = {}

    def commit(self, repo_id, operations, **_):
        for operation in operations:
            uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", lambda *_, **__: ModelCard("# a card"))
    AutoModelForCausalLM.from_pretrained(saved.folder).push_to_hub("somebody/small")
    AutoTokenizer.from_pretrained(saved.folder).push_to_hub("somebody/small")
    assert {*RUNTIME_FILES, "config.json", "model.safetensors", "tokenizer.json"} <= uploaded.keys()
    assert json.loads(uploaded["config.json"])["quantization_config"]["quant_method"] == "lillama"
    assert uploaded["lillama_plugin.py"] == (saved.folder / "lillama_plugin.py").read_bytes()


def test_saving_with_push_to_hub_uploads_the_code_too(saved, tmp_path, monkeypatch):
    uploaded = {}

    def commit(self, repo_id, operations, **_):
        uploaded.update({operation.path_in_repo: operation for operation in operations})

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", lambda *_, **__: ModelCard("# a card"))
    model = AutoModelForCausalLM.from_pretrained(saved.folder)
    model.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="somebody/small")
    assert {*RUNTIME_FILES, "config.json", "model.safetensors"} <= uploaded.keys()


def test_a_given_state_dict_is_what_is_saved(saved, tmp_path):
    """Trainers gather sharded weights and hand them over so."""
    model = AutoModelForCausalLM.from_pretrained(saved.folder)
    ones = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "a", True, ones)
    model.save_pretrained(tmp_path / "b")
    assert all((value == 1).all() for value in load_checkpoint(tmp_path / "a").state_dict().values())
    again = load_checkpoint(tmp_path / "b").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_model_can_be_pickled_and_copied(either, tmp_path):
    model = load_checkpoint(either.folder)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other(either.ids).logits, model(either.ids).logits)
        other.save_pretrained(tmp_path / "again")
        torch.testing.assert_close(load_checkpoint(tmp_path / "again")(either.ids).logits, model(either.ids).logits)


@torch.no_grad()
def test_dequantize_where_a_part_is_missing_in_another_dtype_or_not_at_all(tmp_path):
    saved = make_checkpoint("llama", tmp_path / "a", ends=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(saved.folder, num_labels=3)
    logits = classifier(saved.ids[:1]).logits
    dense = classifier.dequantize()
    assert low_rank_count(dense) == 0
    torch.testing.assert_close(dense(saved.ids[:1]).logits, logits, atol=1e-4, rtol=1e-4)
    assert load_checkpoint(saved.folder).dequantize(dtype=torch.bfloat16).dtype == torch.bfloat16
    places = {"": "disk"}
    spread = AutoModelForCausalLM.from_pretrained(saved.folder, device_map=places, offload_folder=str(tmp_path / "off"))
    with pytest.raises(ValueError, match="without offloading"):
        spread.dequantize()


@torch.no_grad()
def test_one_side_of_an_encoder_decoder(tmp_path):
    model = tiny("t5")
    ranks = mixed_ranks(model)
    model = student_of(model, ranks).settle()
    save_checkpoint(model, byte_tokenizer(), tmp_path, plan={"ranks": ranks}, card="")
    encoder = T5EncoderModel.from_pretrained(tmp_path, attn_implementation="eager")
    ids = batch_for(model).ids
    assert low_rank_count(encoder) > 0
    torch.testing.assert_close(encoder(ids).last_hidden_state, model.encoder(ids).last_hidden_state)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_load_checkpoint_takes_other_classes(auto, tmp_path):
    saved = make_checkpoint("llama", tmp_path, ends=True)
    assert low_rank_count(load_checkpoint(saved.folder, auto=auto)) > 3


def test_a_low_rank_embedding_cannot_be_resized_and_says_so(tmp_path):
    saved = make_checkpoint("llama", tmp_path, ends=True)
    with pytest.raises(TypeError, match="LowRankEmbedding"):
        AutoModelForCausalLM.from_pretrained(saved.folder).resize_token_embeddings(80)


@torch.no_grad()
def test_tying_again_changes_nothing(either):
    """The evaluation harness ties weights after loading."""
    model = AutoModelForCausalLM.from_pretrained(either.folder)
    model.tie_weights()
    model.tie_weights()
    torch.testing.assert_close(model(either.ids).logits, either.logits, atol=1e-5, rtol=1e-5)
    if either.model.config.tie_word_embeddings:
        assert model.lm_head.A.weight is model.model.embed_tokens.A.weight


@pytest.mark.parametrize("form", FactorForm)
@pytest.mark.parametrize("family", ["gemma3_text", "xglm"])
@torch.no_grad()
def test_an_embedding_that_scales_its_rows_is_cut_saved_and_multiplied_out_again(family, form, tmp_path):
    saved = make_checkpoint(family, tmp_path / "saved", ends=True, form=form)
    assert isinstance(saved.model.get_input_embeddings(), LowRankEmbedding)
    loaded = AutoModelForCausalLM.from_pretrained(saved.folder, attn_implementation="eager")
    torch.testing.assert_close(loaded(saved.ids).logits, saved.logits)
    loaded.dequantize()
    torch.testing.assert_close(loaded(saved.ids).logits, saved.logits, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", attn_implementation="eager")
    torch.testing.assert_close(dense(saved.ids).logits, saved.logits, atol=1e-5, rtol=1e-5)
