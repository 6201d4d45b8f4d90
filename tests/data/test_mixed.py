"""Several texts with shares: the budget is exact, every part has its share, the first blocks are mixed alike."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import DataConfig, MixedDataConfig, Packing, PartConfig, Source
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.data.mixed import data_identity, interleaved, parts_of, shared_out, text_blocks
from lillama.data.tokens import TokenBlocks
from lillama.model.byte_tokenizer import byte_tokenizer
from tests.conftest import TINY_RUN, composed, fingerprint

TOKENIZER = byte_tokenizer()
shares_of = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda weights: {str(number): weight / sum(weights) for number, weight in enumerate(weights)}
)


@given(st.integers(1, 10**6), shares_of, st.integers(2, 600))
def test_shares_come_to_the_budget_in_whole_blocks_but_for_one(tokens, shares, seq_len):
    given_out = shared_out(tokens, shares, seq_len)
    assert sum(given_out.values()) == tokens
    assert sum(value % seq_len > 0 for value in given_out.values()) == (tokens % seq_len > 0)
    assert all(abs(given_out[name] - share * tokens) <= seq_len for name, share in shares.items())


def part_of(letter, lengths, seq_len):
    return TokenBlocks(np.full((len(lengths), seq_len), letter, np.int32), np.array(lengths, np.int32))


@given(st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=30), min_size=1, max_size=4), st.data())
@settings(deadline=None)
def test_what_comes_first_is_mixed_as_the_whole_is(lengths, data):
    parts = [part_of(number, own, 8) for number, own in enumerate(lengths)]
    whole = interleaved(parts)
    assert whole.tokens == sum(part.tokens for part in parts)
    for number, part in enumerate(parts):
        assert whole.lengths[whole.ids[:, 0] == number].tolist() == part.lengths.tolist(), "the order stays"
    head = whole.head(data.draw(st.integers(1, whole.tokens)))
    for number, part in enumerate(parts):
        held = head.lengths[head.ids[:, 0] == number].sum()
        wanted = head.tokens * part.tokens / whole.tokens
        assert abs(held - wanted) <= 8 * len(parts), "within a block of each"


def folder(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")


def mix(tmp_path, shares, **options):
    parts = {
        name: PartConfig(source=Source.local, path=str(tmp_path / f"{name}.jsonl"), share=share)
        for name, share in shares.items()
    }
    return MixedDataConfig(**{"parts": parts, "tokens": 100, "seq_len": 10, **options})


def blocks(config, tmp_path):
    return text_blocks(config, TOKENIZER, Cache(tmp_path / "cache"), writer=None)


def test_a_mix_is_of_its_texts_in_their_shares(tmp_path):
    folder(tmp_path, a="a" * 500, b="b" * 500)
    found = blocks(mix(tmp_path, {"a": 0.3, "b": 0.7}), tmp_path)
    said = ["".join(sorted(set(TOKENIZER.decode(ids)))) for ids in found.ids]
    assert said == ["b", "a", "b", "b", "a", "b", "b", "b", "a", "b"]
    assert found.tokens == 100
    assert found.hash == blocks(mix(tmp_path, {"a": 0.3, "b": 0.7}), tmp_path).hash
    assert found.hash != blocks(mix(tmp_path, {"a": 0.4, "b": 0.6}), tmp_path).hash


def test_a_part_says_what_it_has_otherwise_than_the_whole(tmp_path):
    config = mix(tmp_path, {"a": 0.5, "b": 0.5}, seed=3, packing=Packing.padded)
    config.parts["b"] = replace(config.parts["b"], seed=4, packing=Packing.packed)
    one, two = parts_of(config).values()
    assert (one.seed, one.packing, two.seed, two.packing) == (3, Packing.padded, 4, Packing.packed)
    assert (one.tokens, one.seq_len) == (50, 10)


def test_its_texts_are_cached_each_by_itself(tmp_path, monkeypatch):
    folder(tmp_path, a="a" * 500, b="b" * 500)
    first = blocks(mix(tmp_path, {"a": 0.5, "b": 0.5}), tmp_path)
    monkeypatch.setattr("lillama.data.tokens.build_blocks", lambda *_: pytest.fail("built again"))
    again = blocks(mix(tmp_path, {"b": 0.5, "a": 0.5}), tmp_path)
    assert again.hash == first.hash, "the order in which they are named does not matter"


def test_a_part_with_too_few_tokens_is_named(tmp_path):
    folder(tmp_path, a="a" * 500, b="b" * 30)
    with pytest.raises(ConfigError, match=r"^data\.parts\.b\.tokens=50: the data holds only 30 tokens"):
        blocks(mix(tmp_path, {"a": 0.5, "b": 0.5}), tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.parts\.c\.path=.*c\.jsonl: no such file"):
        blocks(mix(tmp_path, {"a": 0.5, "c": 0.5}), tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.parts\.b\.share=0\.001: comes to no block of data\.tokens=100"):
        parts_of(mix(tmp_path, {"a": 0.999, "b": 0.001}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data=mixed data.parts.docs.share=0.6", "data.parts: the shares (docs 0.6, code 0.5) add up to 1.1, not to 1"),
        ("data=mixed data.parts.docs.share=0 data.parts.code.share=1", "data.parts.docs.share=0"),
        ("data=mixed data.tokens=null", "data.tokens=None: shares are of a number of tokens"),
        ("finetune/data=mixed finetune.data.tokens=null", "finetune.data.tokens=None: shares"),
        ("data=mixed data.parts.code.path=null", "data.parts.code.path=None"),
        ("data=mixed data.parts.code.source=speech", "data.parts.code.source=speech: a mix is of"),
        ("data=mixed data.parts.code.source=mixed", "data.parts.code.source=mixed: a mix is of"),
        (
            "data=mixed data.source=stdlib_docs",
            "data.source=stdlib_docs: mixed has an option of its own",
        ),
        ("data=stdlib_docs data.source=mixed", "data.source=mixed: mixed has an option of its own; give data=mixed"),
        (
            "finetune.data.source=generated",
            "generated has an option of its own; give finetune/data=generated",
        ),
        ("data=generated data.tokens=null", "data.tokens=None: a model could write for ever"),
        ("data=generated data.write.temperature=0", "data.write.temperature=0"),
        ("data=generated data.write.batch_size=0", "data.write.batch_size=0"),
        ("evaluate.perplexity.source=mixed", "evaluate.perplexity.source=mixed: a perplexity is measured on a text"),
    ],
)
def test_what_is_no_mix_is_one_line(words, said):
    with pytest.raises(ConfigError) as caught:
        composed(*words.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_a_text_lies_does_not_matter_to_a_run_but_what_it_says_does(tmp_path):
    found = []
    for place, text in (("one", "a" * 900), ("two", "a" * 900), ("three", "b" * 900)):
        (tmp_path / place).mkdir()
        folder(tmp_path / place, a=text, b="b" * 900)
        parts = [f"data.parts.{name}.path={tmp_path / place / f'{file}.jsonl'}" for name, file in PLACES.items()]
        config = composed(*TINY_RUN, "data=mixed", "data.parts.docs.source=local", *parts)
        config.data.parts["code"].files = None
        found.append((fingerprint(config), data_identity(config.data)))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


PLACES = {"docs": "a", "code": "b"}


def test_the_offline_mix_is_of_documentation_and_code(tmp_path):
    config = composed("data=mixed", "data.tokens=4096", "data.seq_len=64").data
    found = blocks(config, tmp_path)
    assert found.tokens == 4096
    assert {type(part) for part in parts_of(config).values()} != {DataConfig}, "their errors name the part"
    code = blocks(parts_of(config)["code"], tmp_path)
    assert code.tokens == 2048
    assert {tuple(row) for row in code.ids} < {tuple(row) for row in found.ids}
