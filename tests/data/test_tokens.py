import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import DataConfig, Join, Order, Packing, Source
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.data.tokens import build_blocks, token_blocks
from lillama.model.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def config(**options):
    return DataConfig(**{"source": Source.local, "path": "x", **options})


def real(blocks):
    return [list(ids[:length]) for ids, length in zip(blocks.ids, blocks.lengths, strict=True)]


texts = st.lists(st.text("abcdef ", min_size=1, max_size=60), min_size=1, max_size=20)


@given(texts, st.integers(2, 40), st.integers(0, 5), st.sampled_from(list(Join)), st.data())
@settings(deadline=None, max_examples=80)
def test_packed_blocks_hold_exactly_the_budget(rows, seq_len, seed, join, data):
    held = sum(map(len, rows))
    budget = data.draw(st.integers(1, held))
    blocks = build_blocks(
        config(tokens=budget, seq_len=seq_len, seed=seed, join=join), [{"text": row} for row in rows], TOKENIZER
    )
    assert blocks.tokens == budget
    assert blocks.ids.shape == (len(blocks.lengths), seq_len)
    assert all(blocks.lengths[:-1] == seq_len), "only the very last block is padded"


@given(texts, st.integers(2, 20))
@settings(deadline=None, max_examples=40)
def test_padded_blocks_are_rows_cut_at_seq_len(rows, seq_len):
    budget = sum(min(len(row), seq_len) for row in rows)
    options = {"packing": Packing.padded, "order": Order.given, "tokens": budget, "seq_len": seq_len}
    blocks = build_blocks(config(**options), [{"text": row} for row in rows], TOKENIZER)
    assert [TOKENIZER.decode(ids) for ids in real(blocks)] == [row[:seq_len] for row in rows]


def test_the_mask_is_true_at_real_tokens_only():
    blocks = build_blocks(
        config(packing=Packing.padded, order=Order.given, tokens=5, seq_len=4),
        [{"text": "ab"}, {"text": "abcdef"}],
        TOKENIZER,
    )
    (batch,) = blocks.batches(2, "cpu")
    ids, mask = batch.ids, batch.mask
    assert ids.shape == (2, 4)
    assert mask.tolist() == [[True, True, False, False], [True, True, True, False]]
    full = build_blocks(config(tokens=8, seq_len=4), [{"text": "abcdefgh"}], TOKENIZER)
    assert [batch.mask for batch in full.batches(1, "cpu")] == [None, None]


def test_the_order_is_seeded():
    rows = [{"instruction": str(number), "output": "x"} for number in range(50)]

    def hash_of(**options):
        return build_blocks(config(tokens=80, seq_len=16, **options), rows, TOKENIZER).hash

    assert hash_of(seed=1) == hash_of(seed=1)
    assert hash_of(seed=1) != hash_of(seed=2)
    assert hash_of(seed=1, order=Order.given) == hash_of(seed=2, order=Order.given)


def test_longest_first_takes_the_longest():
    rows = [{"text": "a" * length} for length in (3, 9, 5)]
    options = {"packing": Packing.padded, "order": Order.longest_first, "tokens": 14, "seq_len": 16}
    assert build_blocks(config(**options), rows, TOKENIZER).lengths.tolist() == [9, 5]


def test_rows_of_plain_text_are_joined_by_blank_lines_and_turns_by_eos():
    plain = build_blocks(config(tokens=6, seq_len=6, order=Order.given), [{"text": "ab"}, {"text": "cd"}], TOKENIZER)
    assert TOKENIZER.decode(real(plain)[0]) == "ab\n\ncd"
    rows = [{"instruction": "a", "output": "b"}] * 2
    turns = build_blocks(config(tokens=10, seq_len=10, order=Order.given), rows, TOKENIZER)
    assert TOKENIZER.decode(real(turns)[0]) == "a\n\nb<eos>a\n\nb<eos>"


class WithBos:
    """A tokenizer that opens every text with BOS, as Llama's does."""

    chat_template = "<bos>" + CHATML
    eos_token_id = TOKENIZER.eos_token_id
    pad_token_id = TOKENIZER.pad_token_id

    def __call__(self, text, add_special_tokens=True, **options):
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [TOKENIZER.bos_token_id] * add_special_tokens + ids}

    def apply_chat_template(self, turns, tokenize):
        assert not tokenize
        return "<bos>" + "".join(turn["content"] for turn in turns)


def test_a_chat_template_gives_no_doubled_bos():
    rows = [{"instruction": "a", "output": "b"}] * 3
    blocks = build_blocks(config(tokens=9, seq_len=9, order=Order.given), rows, WithBos())
    assert real(blocks)[0] == TOKENIZER("<bos>ab<bos>ab<bos>ab")["input_ids"]
    plain = build_blocks(
        config(tokens=6, seq_len=6, order=Order.given, join=Join.none), [{"text": "ab"}] * 2, WithBos()
    )
    assert real(plain)[0] == TOKENIZER("<bos>ab<bos>ab")["input_ids"]


def test_too_small_data_is_refused_with_what_it_holds():
    with pytest.raises(ConfigError, match=r"data\.tokens=100: the data holds only 5 tokens"):
        build_blocks(config(tokens=100), [{"text": "abcde"}], TOKENIZER)


def test_tokens_are_cached_by_content(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "abcdefgh" * 10}) + "\n")
    options = config(path=str(file), tokens=40, seq_len=8)
    first = token_blocks(options, TOKENIZER, Cache(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr("lillama.data.tokens.build_blocks", lambda *_: pytest.fail("built again"))
        again = token_blocks(options, TOKENIZER, Cache(tmp_path / "cache"))
        assert again.hash == first.hash
        np.testing.assert_array_equal(again.ids, first.ids)
    file.write_text(json.dumps({"text": "hgfedcba" * 10}) + "\n")
    assert token_blocks(options, TOKENIZER, Cache(tmp_path / "cache")).hash != first.hash
    other = config(path=str(file), tokens=40, seq_len=10)
    assert token_blocks(other, TOKENIZER, Cache(tmp_path / "cache")).ids.shape == (4, 10)


def test_the_head_holds_at_least_what_is_asked(tokens):
    assert tokens.head(1).tokens == 32
    assert tokens.head(33).tokens == 64
    assert tokens.head(32).tokens == 32
    assert tokens.head(10**9).tokens == tokens.tokens
