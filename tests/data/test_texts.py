import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.data.texts import RowTexts, encodable

ANY = st.text(st.characters(exclude_categories=()), max_size=8)


@given(ANY)
def test_whatever_a_string_holds_it_can_be_encoded_and_only_halves_of_pairs_are_replaced(text):
    made, replaced = encodable(text)
    made.encode()
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    assert replaced == made.count("\ufffd") - text.count("\ufffd")
    assert made.replace("\ufffd", "") == whole.replace("\ufffd", "").removeprefix("\ufeff")


@pytest.mark.parametrize(
    ("text", "made", "replaced"),
    [
        ("half \ud83d here", "half \ufffd here", 1),
        ("\udc00\udc00", "\ufffd\ufffd", 2),
        ("whole \ud83d\ude00", "whole \U0001f600", 0),
        ("\ufeffmarked", "marked", 0),
        ("a\0b", "a\0b", 0),
    ],
)
def test_what_is_no_text_is_replaced_and_counted(text, made, replaced):
    assert encodable(text) == (made, replaced)


def test_replaced_characters_are_counted_once_a_row(tokenizer):
    tokenizer.chat_template = None
    rows = [json.loads('{"text": "\\ud83d"}'), {"instruction": "\ud83d", "output": "\udc01"}, {"text": "fine"}]
    texts = RowTexts(rows, tokenizer)
    assert [text.text for text in texts] == ["\ufffd", "\ufffd\n\n\ufffd", "fine"]
    assert len(list(texts)) == 3
    assert texts.counts.as_dict() == {"skipped_rows": 0, "replaced_characters": 3}
