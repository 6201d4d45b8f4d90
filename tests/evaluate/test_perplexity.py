import math

import pytest
import torch

from lillama.config import InvalidRows, PerplexityConfig, Source
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate.perplexity import measured_text, perplexity
from lillama.model.byte_tokenizer import byte_tokenizer

IDS = torch.randint(4, 260, (75,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def by_hand(model, ids, seq_len):
    """The same definition another way: token by token, in float64 probabilities."""
    surprise, count = 0.0, 0
    for start in range(0, len(ids), seq_len):
        window = ids[start : start + seq_len]
        probabilities = model(window[None]).logits[0].double().softmax(-1)
        for position in range(1, len(window)):
            surprise -= math.log(float(probabilities[position - 1, window[position]]))
            count += 1
    return math.exp(surprise / count)


@pytest.mark.parametrize("seq_len", [10, 25, 32, 75, 100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_the_fields_definition_with_every_token_counted(tiny_model, seq_len, batch_size):
    found = perplexity(tiny_model, IDS, seq_len=seq_len, batch_size=batch_size)
    assert found == pytest.approx(by_hand(tiny_model, IDS, seq_len), rel=1e-5)


@torch.no_grad()
def with_context(model, ids, seq_len, stride):
    """Windows that overlap, another way: every token's probability from the window in which it first appears."""
    surprise, seen = [], set()
    for start in range(0, len(ids), stride):
        window = ids[start : start + seq_len]
        logs = model(window[None]).logits[0].double().log_softmax(-1)
        for position in range(1, len(window)):
            if start + position not in seen and (start == 0 or start + position >= seq_len):
                seen.add(start + position)
                surprise.append(-float(logs[position - 1, window[position]]))
        if start + seq_len >= len(ids):
            break
    return math.exp(sum(surprise) / len(surprise)), len(surprise)


@pytest.mark.parametrize("stride", [1, 7, 20, 24])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_overlapping_windows_count_every_token_but_the_first_once(tiny_model, stride, batch_size):
    expected, count = with_context(tiny_model, IDS, 25, stride)
    assert count == len(IDS) - 1
    found = perplexity(tiny_model, IDS, seq_len=25, stride=stride, batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_are_those_of_the_text(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("ab\u00e9cd")
    text = measured_text(config(tmp_path / "text.txt"), tokenizer)
    assert text.bytes == 6
    assert text.bits_per_byte(2.0) == pytest.approx(len(text) / 6)
    assert text.bits_per_byte(1.0) == 0
    cut = measured_text(config(tmp_path / "text.txt", max_tokens=2), tokenizer)
    assert (len(cut), cut.bytes) == (2, 2)


def test_one_nan_weight_gives_an_error_and_no_number(tiny_model):
    with torch.no_grad():
        tiny_model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="perplexity"):
        perplexity(tiny_model, IDS, seq_len=25)


def test_a_perplexity_too_large_for_a_number_is_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight *= 1e5
    with pytest.raises(DivergedError, match="not finite"):
        perplexity(tiny_model, IDS, seq_len=25)


def config(path, **options):
    return PerplexityConfig(source=Source.local, path=str(path), **options)


def test_rows_are_joined_by_blank_lines_and_cut(tokenizer, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "ab\\n"}\n{"text": ""}\n{"text": "cd"}\n')
    assert tokenizer.decode(measured_text(config(file), tokenizer).ids) == "ab\n\n\n\n\ncd"
    assert tokenizer.decode(measured_text(config(file, max_tokens=2), tokenizer).ids) == "ab"


def test_of_a_long_text_only_the_beginning_is_encoded_with_the_same_tokens(tmp_path):
    given = []

    class Counting:
        is_fast = True

        def __call__(self, text, **options):
            given.append(len(text))
            return byte_tokenizer()(text, **options)

    file = tmp_path / "text.txt"
    file.write_text("abc defg " * 9999)
    cut = measured_text(config(file, max_tokens=30), Counting())
    assert byte_tokenizer().decode(cut.ids) == ("abc defg " * 4)[:30]
    assert (len(cut), cut.bytes) == (30, 30)
    assert max(given) < 2000


def test_invalid_rows_of_a_measured_text_are_refused_or_skipped_and_counted(tokenizer, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "ab"}\n{"text": null}\n{"text": "c\\ud83d"}\n')
    with pytest.raises(ConfigError, match=r"evaluate\.perplexity\.path=.*line 2: needs text"):
        measured_text(config(file), tokenizer)
    text = measured_text(config(file, invalid_rows=InvalidRows.skip), tokenizer)
    assert tokenizer.decode(text.ids) == "ab\n\nc\ufffd"
    assert text.counts.as_dict() == {"skipped_rows": 1, "replaced_characters": 1}
    assert text.bytes == len("ab\n\nc\ufffd".encode())


def test_a_text_of_one_token_is_refused(tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("a")
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        measured_text(config(file), tokenizer)
