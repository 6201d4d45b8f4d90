"""Text of any size: what is read and encoded follows the budget, not the file."""

import json

import pytest

from lillama.config import DataConfig, InvalidRows, Join, Order, Packing, Source
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError
from lillama.data import packing, sources
from lillama.data.rows import ListedRows
from lillama.data.tokens import build_blocks, token_blocks
from lillama.model.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
WORDS = [f"row {number}: " + "word " * (20 + number % 7) for number in range(400)]


@pytest.fixture
def short(monkeypatch):
    """Text of more than 2,000 characters counts as long."""
    monkeypatch.setattr(packing, "ENCODED_WHOLE", 2000)
    monkeypatch.setattr(packing, "SMALLEST_PASSAGE", 200)


class Counting:
    """A tokenizer that counts what it is given."""

    eos_token_id, pad_token_id = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id

    def __init__(self):
        self.characters = 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return TOKENIZER(text, **options)


class CountingRows(ListedRows):
    """Rows that count how often one is read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def config(**options):
    return DataConfig(**{"source": Source.local, "path": "x", "tokens": 256, "seq_len": 64, **options})


def decoded(blocks):
    return [TOKENIZER.decode(ids[:length]) for ids, length in zip(blocks.ids, blocks.lengths, strict=True)]


@pytest.mark.parametrize(
    "options", [{}, {"join": Join.eos}, {"packing": Packing.padded}, {"order": Order.given}, {"join": Join.none}]
)
def test_a_text_a_hundred_times_as_long_costs_no_more(options, short):
    cost = []
    for times in (1, 100):
        rows, tokenizer = CountingRows([{"text": text} for text in WORDS * times], "x"), Counting()
        assert build_blocks(config(**options), rows, tokenizer).tokens == 256
        cost.append((rows.read, tokenizer.characters))
    (few, short_text), (many, long_text) = cost
    assert many <= few + 40
    assert long_text <= 2 * short_text < 20_000


@pytest.mark.parametrize("rows", [WORDS, ["".join(WORDS)], ["".join(WORDS[:200]), *WORDS[200:]]])
@pytest.mark.parametrize("order", [Order.shuffled, Order.given])
def test_windows_of_a_long_text_are_whole_seeded_and_in_the_end_all_of_it(rows, order, short):
    given = [{"text": text} for text in rows]

    def made(**options):
        return build_blocks(config(order=order, **options), given, TOKENIZER)

    some = made()
    assert some.lengths.tolist() == [64] * 4
    assert some.hash == made().hash
    assert (some.hash == made(seed=1).hash) == (order is Order.given)
    assert all(window in "\n\n".join(rows) for window in decoded(some))
    everything = made(tokens=None)
    assert (everything.ids[:4] == some.ids).all(), "a larger budget begins with the same windows"
    assert all(everything.lengths[:-1] == 64)
    letters = sorted("".join(decoded(everything)).replace("\n", ""))
    assert letters == sorted("".join(rows)), "every character once"
    with pytest.raises(ConfigError, match="holds only"):
        made(tokens=everything.tokens + 1)


def test_a_short_text_is_encoded_whole_and_its_windows_shuffled():
    rows = [{"text": text} for text in WORDS]
    whole = TOKENIZER("\n\n".join(WORDS))["input_ids"]
    blocks = build_blocks(config(tokens=None, order=Order.given), rows, TOKENIZER)
    assert [token for ids, size in zip(blocks.ids, blocks.lengths, strict=True) for token in ids[:size]] == whole
    windows = {tuple(whole[start : start + 64]) for start in range(0, len(whole), 64)}
    assert {tuple(ids) for ids in build_blocks(config(), rows, TOKENIZER).ids} <= windows


def test_the_beginning_of_a_long_row_has_the_tokens_that_it_has_in_the_whole():
    row = [{"text": "abc " * 4000}]
    tokenizer = Counting()
    blocks = build_blocks(config(packing=Packing.padded, tokens=64), row, tokenizer)
    assert decoded(blocks) == ["abc " * 16]
    assert tokenizer.characters < 2000


@pytest.mark.parametrize("options", [{}, {"packing": Packing.padded}, {"join": Join.eos}])
@pytest.mark.parametrize("order", list(Order))
def test_skipped_rows_are_as_if_they_were_not_there(order, options, tmp_path):
    written = "".join(json.dumps({"text": text}) + "\n" for text in WORDS[:20])
    invalid = '{"text": 1}\n' + written + "{broken\n" + '{"text": "' + "\\ud83d" + '"}\n'
    results = []
    for name, content in (("valid", written), ("invalid", invalid)):
        (tmp_path / f"{name}.jsonl").write_text(content)
        file = str(tmp_path / f"{name}.jsonl")
        given = config(path=file, invalid_rows=InvalidRows.skip, order=order, tokens=None, **options)
        results.append(build_blocks(given, sources.read_rows(given, "data"), TOKENIZER))
    valid, left = results
    assert valid.counts.as_dict() == {"skipped_rows": 0, "replaced_characters": 0}
    assert left.counts.as_dict() == {"skipped_rows": 2, "replaced_characters": 1}
    assert left.head(1).counts == left.counts
    extra = len(TOKENIZER("\ufffd")["input_ids"])
    assert extra <= left.tokens - valid.tokens <= extra + 2, "the row with half a character, and what joins it"


def test_a_text_without_a_valid_row_says_how_many_were_skipped():
    with pytest.raises(ConfigError, match=r"data: the texts hold no token \(2 rows were skipped\)"):
        broken = sources.CheckedRows(ListedRows([{"txt": 1}, 2], "x"))
        build_blocks(config(invalid_rows=InvalidRows.skip), broken, TOKENIZER)


def test_the_cache_keeps_counts_and_its_keys_tell_parsers_and_options_apart(tmp_path):
    content = "".join(json.dumps({"text": text}) + "\n" for text in WORDS)
    for suffix in ("txt", "jsonl"):
        (tmp_path / f"a.{suffix}").write_text(content + ("{broken\n" if suffix == "jsonl" else "{}\n"))
    (tmp_path / "b.txt").write_bytes((tmp_path / "a.jsonl").read_bytes())
    cache = Cache(tmp_path / "cache")

    def made(name):
        return token_blocks(config(path=str(tmp_path / name), invalid_rows=InvalidRows.skip), TOKENIZER, cache)

    first = made("a.jsonl")
    assert first.counts.skipped_rows == 1
    assert made("a.jsonl").counts == first.counts
    assert made("b.txt").hash != first.hash, "the same bytes read as prose"
    with pytest.raises(ConfigError, match="line 401: not JSON"):
        token_blocks(config(path=str(tmp_path / "a.jsonl")), TOKENIZER, cache)
