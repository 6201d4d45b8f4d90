"""Generated texts: what they may depend on, and how repetition is counted."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lillama.config import SamplesConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate.samples import distinct, prompt_tokens, repetition, samples
from tests.families import tiny

TOKENS = st.lists(st.integers(0, 3), max_size=30)
SIZES = st.integers(1, 5)


def config(**changes) -> SamplesConfig:
    return SamplesConfig(**{"prompts": ["once upon", "a tone"], "max_new_tokens": 12, **changes})


def texts(found) -> list[str]:
    return [text["text"] for text in found["texts"]]


@given(TOKENS, SIZES)
def test_both_rates_lie_between_nothing_and_all(tokens, n):
    if len(tokens) < n:
        assert distinct(tokens, n) is repetition(tokens, n) is None
    else:
        assert 0 < distinct(tokens, n) <= 1
        assert 0 <= repetition(tokens, n) < 1


@given(TOKENS, SIZES)
def test_naming_the_tokens_otherwise_changes_nothing(tokens, n):
    assert distinct([{0: 7, 1: 0, 2: 9, 3: 1}[token] for token in tokens], n) == distinct(tokens, n)


@given(TOKENS, SIZES)
def test_read_backwards_a_text_is_as_diverse(tokens, n):
    assert distinct(tokens[::-1], n) == distinct(tokens, n)


@given(TOKENS.filter(bool), st.randoms())
def test_single_tokens_know_no_order(tokens, random):
    shuffled = random.sample(tokens, len(tokens))
    assert distinct(shuffled, 1) == distinct(tokens, 1)


@given(st.integers(4, 50))
def test_the_extremes(length):
    assert [distinct(range(length), n) for n in (1, 2, 3)] == [1, 1, 1]
    assert repetition(range(length)) == 0
    assert distinct([5] * length, 2) == 1 / (length - 1)
    assert repetition([5] * length) == 1 - 1 / (length - 3)


def test_by_hand():
    text = [1, 2, 1, 2, 3]
    assert distinct(text, 1) == 3 / 5
    assert distinct(text, 2) == 3 / 4
    assert distinct(text, 3) == 1
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_a_text_a_prompt_and_seed(tiny_model, tokenizer):
    found = samples(tiny_model, tokenizer, config(temperature=1.5, seeds=[3, 4]))
    json.dumps(found, allow_nan=False)
    assert [(text["prompt"], text["seed"]) for text in found["texts"]] == [
        ("once upon", 3),
        ("once upon", 4),
        ("a tone", 3),
        ("a tone", 4),
    ]
    assert len(set(texts(found))) == 4


def test_greedy_is_once_and_the_likeliest(tiny_model, tokenizer):
    found = samples(tiny_model, tokenizer, config(prompts=["abc"], seeds=[3, 4], max_new_tokens=5))
    ids = tokenizer("abc")["input_ids"]
    for _ in range(5):
        ids.append(int(tiny_model(torch.tensor([ids])).logits[0, -1].argmax()))
    (text,) = found["texts"]
    assert text["seed"] == 3
    assert text["text"] == tokenizer.decode(ids[3:], skip_special_tokens=True), "the continuation only"
    assert (text["tokens"], text["ended"]) == (5, False)


def test_a_seed_decides_the_text_whatever_was_drawn_before(tiny_model, tokenizer):
    drawn = config(temperature=1.5, seeds=[3, 4])
    first = samples(tiny_model, tokenizer, drawn)
    torch.manual_seed(99)
    assert samples(tiny_model, tokenizer, drawn) == first
    alone = samples(tiny_model, tokenizer, config(temperature=1.5, seeds=[4], prompts=["a tone"]))
    assert texts(alone) == texts(first)[3:], "no text depends on others"


def test_the_runs_random_state_stays(tiny_model, tokenizer):
    before = torch.get_rng_state()
    samples(tiny_model, tokenizer, config(temperature=1.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_checkpoints_own_settings_do_not_leak(tiny_model, tokenizer):
    plain = [samples(tiny_model, tokenizer, config(temperature=heat)) for heat in (0.0, 1.5)]
    own = tiny_model.generation_config
    own.update(do_sample=True, top_k=1, repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=3)
    assert [samples(tiny_model, tokenizer, config(temperature=heat)) for heat in (0.0, 1.5)] == plain
    assert tiny_model.generation_config is own
    assert own.repetition_penalty == 9.0


def test_a_narrow_nucleus_is_greedy(tiny_model, tokenizer):
    greedy, narrow = config(), config(temperature=1.5, top_p=1e-6)
    assert texts(samples(tiny_model, tokenizer, narrow)) == texts(samples(tiny_model, tokenizer, greedy))


def test_the_token_that_ends_a_text_is_none_of_it(tiny_model, tokenizer):
    long = config(prompts=["abc"], max_new_tokens=8)
    (whole,) = samples(tiny_model, tokenizer, long)["texts"]
    ids = tiny_model.generate(torch.tensor([tokenizer("abc")["input_ids"]]), max_new_tokens=8, do_sample=False)
    last = int(ids[0, -1])
    first = ids[0, 3:].tolist().index(last)
    tiny_model.generation_config.eos_token_id = [258, last]
    (cut,) = samples(tiny_model, tokenizer, long)["texts"]
    assert (cut["tokens"], cut["ended"]) == (first, True)
    assert whole["text"].startswith(cut["text"])
    assert not whole["ended"]


def test_texts_too_short_for_a_metric_have_none(tiny_model, tokenizer):
    found = samples(tiny_model, tokenizer, config(max_new_tokens=2))
    assert found["texts"][0]["distinct_2"] == 1
    assert found["texts"][0]["distinct_3"] is found["mean"]["distinct_3"] is found["mean"]["repetition"] is None
    assert found["mean"]["tokens"] == 2


def test_means_are_over_the_texts(tiny_model, tokenizer):
    found = samples(tiny_model, tokenizer, config(temperature=1.5, seeds=[1, 2]))
    for name in ("repetition", "distinct_1", "tokens", "ended"):
        assert found["mean"][name] == pytest.approx(sum(text[name] for text in found["texts"]) / 4)


@pytest.mark.parametrize("family", ["gpt2", "mamba", "mamba2", "jamba", "gemma2", "t5", "bart"])
def test_families(family, tokenizer):
    model = tiny(family, vocab_size=300)
    found = samples(model, tokenizer, config(prompts=["ab", "abcd"], max_new_tokens=6))
    assert samples(model, tokenizer, config(prompts=["abcd"], max_new_tokens=6))["texts"] == found["texts"][1:]
    assert all(text["tokens"] == 6 or text["ended"] for text in found["texts"])


def test_a_prompt_through_the_chat_template(tiny_model, tokenizer):
    asked = config(chat_template=True, prompts=["hi"])
    with pytest.raises(ConfigError, match=r"evaluate.samples.chat_template=true: the model's tokenizer has none"):
        samples(tiny_model, tokenizer, asked)
    turns = "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    assert prompt_tokens(tokenizer, asked) == [tokenizer("[user]hi[assistant]")["input_ids"]]
    plain = config(prompts=["[user]hi[assistant]"])
    assert texts(samples(tiny_model, tokenizer, asked)) == texts(samples(tiny_model, tokenizer, plain))
    tokenizer.chat_template = "{{ raise_exception('only questions') }}"
    with pytest.raises(ConfigError, match="only questions"):
        samples(tiny_model, tokenizer, asked)


def test_prompts_that_cannot_be_written_on(tiny_model, tokenizer):
    with pytest.raises(ConfigError, match=r"evaluate.samples.prompts: '' has no tokens"):
        samples(tiny_model, tokenizer, config(prompts=["a", ""]))
    with pytest.raises(ConfigError, match=r"evaluate.samples.max_new_tokens=510: .* needs 513 positions, and has 512"):
        samples(tiny_model, tokenizer, config(prompts=["abc"], max_new_tokens=510))


def test_logits_that_are_not_finite_stop_it(tiny_model, tokenizer):
    tiny_model.model.norm.weight.data.fill_(float("nan"))
    for heat in (0.0, 1.0):
        with pytest.raises(DivergedError, match="samples: the logits"):
            samples(tiny_model, tokenizer, config(temperature=heat))
