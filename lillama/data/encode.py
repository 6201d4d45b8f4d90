"""Text into token ids, no more of it than is needed."""

from typing import Any

from lillama.data.texts import RowText

CHARACTERS_A_TOKEN = 8  # more than any tokenizer's mean on prose
BORDER = 64  # tokens before a cut that may be others than those of the whole text


def encode(text: str, tokenizer: Any, *, special: bool) -> list[int]:
    """Encode a text; ``special`` adds the tokenizer's own tokens at its ends."""
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def encode_row(row: RowText, tokenizer: Any, most: int | None = None) -> list[int]:
    """Encode a row; a chat template writes its own special tokens, so none are added to its text (no doubled BOS).

    :param most: how many tokens are needed at most: of a long text, its beginning is encoded, and they are the same.
    """
    if most is not None:
        characters = CHARACTERS_A_TOKEN * (most + BORDER)
        while characters < len(row.text):
            ids = encode(row.text[:characters], tokenizer, special=not row.templated)
            if len(ids) >= most + BORDER:
                return ids[:most]
            characters *= 2
    return encode(row.text, tokenizer, special=not row.templated)[:most]
