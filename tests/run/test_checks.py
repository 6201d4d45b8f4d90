"""Lengths and tokens beyond a model are named before it is loaded, for every stage that would meet them."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lillama import compress
from lillama.config import ZeroShotConfig
from lillama.core.errors import ConfigError
from lillama.evaluate.tasks import harness_tasks
from lillama.evaluate.zero_shot import check_generation, zero_shot
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.run.inputs import Inputs
from lillama.run.run import Run
from tests.conftest import composed
from tests.evaluate.tasks_data import fill
from tests.whisper import make_speech, make_whisper

POSITIONS = 64
SHAPE = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
TEXT = "once upon a time there was a text of more than sixty-four tokens, and of ordinary letters. " * 4


def learned(words=260):
    """A model with a learned table of positions."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=words, bos_token_id=1, eos_token_id=2, **SHAPE)
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a model whose weights are not there: whatever loads them fails."""
    folder = tmp_path_factory.mktemp("learned")
    for name, words, pad in (("fits", 260, "<pad>"), ("small", 250, "<pad>"), ("padded", 260, "<added>")):
        learned(words).save_pretrained(folder / name)
        (folder / name / "model.safetensors").unlink()
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": pad})
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(TEXT)
    return folder


def configured(place, *overrides, model="fits"):
    text, short = f"path={place / 'text.txt'}", ("seq_len=32", "max_tokens=64")
    return composed(
        *("preset=local", "model=hub", f"model.path={place / model}", "data=local", f"data.{text}", "data.seq_len=64"),
        *("data.tokens=100", f"cache_dir={place / 'cache'}", "finetune/data=local", f"finetune.data.{text}"),
        *("evaluate/perplexity=local", f"evaluate.perplexity.{text}", *(f"evaluate.perplexity.{v}" for v in short)),
        *overrides,
    )


def no_writer():
    raise AssertionError("no text here is generated")


def read_inputs(config):
    found = Inputs(Run.of(config), no_writer)
    found.read()
    return found


def prepared(place, *overrides, model="fits"):
    return read_inputs(configured(place, *overrides, model=model))


TOO_LONG = {
    "data.seq_len=65": ("init,distill", "data.seq_len=65"),
    "finetune.data.seq_len=65": ("finetune", "finetune.data.seq_len=65"),
    "evaluate.perplexity.seq_len=65 evaluate.perplexity.max_tokens=null": (
        "perplexity",
        "evaluate.perplexity.seq_len=65",
    ),
    "evaluate.stable_rank.seq_len=65": ("stable_rank", "evaluate.stable_rank.seq_len=65"),
    "evaluate.throughput.lengths=[32,65]": ("throughput", "evaluate.throughput.lengths=65"),
    "evaluate.throughput.lengths=[32] evaluate.throughput.prompt=40": ("throughput", r"prompt \+ new_tokens=72"),
    "evaluate.samples.prompts=[abcd] evaluate.samples.max_new_tokens=61": ("samples", "max_new_tokens=61: .* has 64"),
}


@pytest.mark.parametrize("overrides", TOO_LONG)
def test_a_sequence_that_is_longer_than_the_table_is_named(place, overrides):
    stage, said = TOO_LONG[overrides]
    train = "finetune.train=all" if stage == "finetune" else "finetune.train=none"
    with pytest.raises(ConfigError, match=said):
        prepared(place, f"stages=[{stage}]", train, *overrides.split())


def test_domains_are_named_by_their_text(place):
    config = configured(place, "stages=[domains]", "evaluate/domains=stdlib")
    config.evaluate.domains.texts = {"mine": replace(config.evaluate.perplexity, seq_len=65, max_tokens=None)}
    with pytest.raises(ConfigError, match=r"evaluate\.domains\.texts\.mine\.seq_len=65: .* 64 tokens; give at most 64"):
        read_inputs(config)


def test_a_text_that_is_shorter_than_the_window_needs_no_shorter_window(place):
    found = prepared(place, "stages=[perplexity]", "evaluate.perplexity.seq_len=2048")
    assert len(found.text) == 64


def test_a_token_beyond_the_table_is_named(place):
    for stage in ("init,distill", "perplexity"):
        with pytest.raises(ConfigError, match=r"token 25\d \('.'\), and the model has 250 embeddings"):
            (place / "high.txt").write_text(TEXT + "àí")
            text = place / "high.txt"
            long = ("data.tokens=null", "evaluate.perplexity.max_tokens=null")
            prepared(
                place,
                f"stages=[{stage}]",
                f"data.path={text}",
                f"evaluate.perplexity.path={text}",
                *long,
                model="small",
            )


def test_a_tokenizer_that_is_larger_than_the_model_is_used_where_the_text_needs_no_more(place):
    found = prepared(place, "stages=[init,distill]", model="padded")
    assert found.tokenizer.pad_token_id == 260
    assert found.calibration.ids.max() == 260, "padding, which no model sees"


def test_a_prompt_with_an_added_token_is_named(place):
    with pytest.raises(ConfigError, match=r"evaluate\.samples\.prompts: .* token 260 \('<added>'\)"):
        prepared(
            place,
            "stages=[samples]",
            "evaluate.samples.prompts=['a<added>']",
            "evaluate.samples.max_new_tokens=8",
            model="padded",
        )


def test_a_baseline_has_to_have_room_as_well(place, tmp_path):
    other = AutoConfig.for_model("gpt2", vocab_size=260, **{**SHAPE, "n_positions": 16})
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(place / "fits").save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"evaluate\.perplexity\.seq_len=32: the model has positions for 16"):
        prepared(place, "stages=[perplexity]", f"evaluate.baseline={tmp_path / 'base'}")


def test_a_transcript_that_is_longer_than_the_decoder_is_named(tmp_path):
    pytest.importorskip("soundfile", reason="soundfile is not installed")
    words = ("model=hub", f"model.path={make_whisper(tmp_path / 'whisper')}", "stages=[init,distill]", "data=speech")
    speech = make_speech(tmp_path / "speech")
    (speech / "metadata.jsonl").write_text('{"file_name": "0.wav", "transcription": "' + "a tone " * 9 + '"}')
    config = composed(*words, f"data.path={speech}", "data.tokens=null", f"cache_dir={tmp_path}", "data.seq_len=60")
    with pytest.raises(ConfigError, match=r"data\.seq_len=\d+: the model has positions for 32 tokens"):
        read_inputs(config)


def test_tasks_are_cut_at_the_table_and_their_tokens_named(tmp_path, tokenizer):
    config = ZeroShotConfig(tasks=["boolq", "arc_easy"], limit=2)
    tasks = harness_tasks(config, str(fill(tmp_path)))
    model = learned().eval()
    assert zero_shot(model, tokenizer, tasks, config)["mean"]["tasks"] == 2
    with pytest.raises(ConfigError, match=r"a task holds token \d+, and the model has 70 embeddings"):
        zero_shot(learned(70).eval(), tokenizer, tasks, config)


def test_a_task_that_generates_more_than_there_are_positions_is_named(tmp_path):
    tasks = harness_tasks(ZeroShotConfig(tasks=["boolq"]), str(fill(tmp_path)))
    check_generation(learned(), tasks)
    tasks.leaves["boolq"].OUTPUT_TYPE = "generate_until"
    with pytest.raises(ConfigError, match="boolq generates 256 tokens, and the model has 64 positions"):
        check_generation(learned(), tasks)


def test_in_python_too(tokenizer):
    with pytest.raises(ConfigError, match="seq_len=65: the model has positions for 64 tokens"):
        compress(learned(), tokenizer, [TEXT], tokens=100, seq_len=65)
    with pytest.raises(ConfigError, match=r"texts: .* the model has 70 embeddings"):
        compress(learned(70), tokenizer, [TEXT], tokens=100, seq_len=32)
    broken = learned()
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"transformer\.h\.0\.mlp\.c_fc\.weight holds NaN"):
        compress(broken, tokenizer, [TEXT], tokens=100, seq_len=32)
    quantized = learned()
    quantized.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ConfigError, match=r"quantized \(bitsandbytes, 4 bit\)"):
        compress(quantized, tokenizer, [TEXT], tokens=100, seq_len=32)
