import pytest

from lillama.config import SystemTurns, Template
from lillama.data.rows import check_row, row_text
from lillama.errors import ConfigError

SHAREGPT = {
    "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
}
ALPACA = {"instruction": "Q", "input": "I", "output": "A"}
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI])
def test_both_forms_of_conversation_read_alike(row, tokenizer):
    check_row(row, "here")
    assert row_text(row, tokenizer, Template.none, SystemTurns.keep) == "S\n\nQ\n\nA"
    assert row_text(row, tokenizer, Template.none, SystemTurns.drop) == "Q\n\nA"
    tokenizer.chat_template = CHATML
    assert row_text(row, tokenizer, Template.auto, SystemTurns.keep) == "<system>S<user>Q<assistant>A"
    assert row_text(row, tokenizer, Template.auto, SystemTurns.drop) == "<user>Q<assistant>A"
    assert row_text(row, tokenizer, Template.none, SystemTurns.drop) == "Q\n\nA"


def test_an_instruction_is_a_turn_and_its_input_belongs_to_it(tokenizer):
    tokenizer.chat_template = CHATML
    assert row_text(ALPACA, tokenizer, Template.auto, SystemTurns.keep) == "<user>Q\n\nI<assistant>A"
    assert row_text(ALPACA | {"input": ""}, tokenizer, Template.auto, SystemTurns.keep) == "<user>Q<assistant>A"


def test_a_template_without_a_system_role_gets_its_words_in_the_first_turn(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    assert row_text(SHAREGPT, tokenizer, Template.auto, SystemTurns.keep) == "<user>S\n\nQ<assistant>A"


DEFAULT_PROMPT = "<bos>{% if messages[0].role != 'system' %}<system>default{% endif %}" + CHATML


def test_dropping_system_turns_drops_the_templates_own_prompt_too(tokenizer):
    tokenizer.chat_template = DEFAULT_PROMPT
    assert (
        row_text(ALPACA, tokenizer, Template.auto, SystemTurns.keep) == "<bos><system>default<user>Q\n\nI<assistant>A"
    )
    for row in (SHAREGPT, ALPACA | {"input": ""}):
        assert row_text(row, tokenizer, Template.auto, SystemTurns.drop) == "<bos><user>Q<assistant>A"
    tokenizer.chat_template = NO_SYSTEM
    assert row_text(SHAREGPT, tokenizer, Template.auto, SystemTurns.drop) == "<user>Q<assistant>A"


def test_an_instruction_row_that_repeats_itself_as_text_is_an_instruction(tokenizer):
    tokenizer.chat_template = CHATML
    row = ALPACA | {"text": "Below is an instruction. Q A"}
    check_row(row, "here")
    assert row_text(row, tokenizer, Template.auto, SystemTurns.keep) == "<user>Q\n\nI<assistant>A"


def test_plain_text_is_left_as_it_is(tokenizer):
    tokenizer.chat_template = CHATML
    assert row_text({"text": " a \n"}, tokenizer, Template.auto, SystemTurns.keep) == " a \n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["text"], "must be an object"),
        ({"prompt": "x"}, r"needs text, or instruction and output, or conversations; it has \['prompt'\]"),
        ({"instruction": "x"}, "it has"),
        ({"conversations": "x"}, "list of turns"),
        ({"conversations": [{"from": "human"}]}, "a turn needs"),
        ({"messages": [{"role": "user", "content": None}]}, "a turn needs"),
    ],
)
def test_other_rows_are_refused(row, message):
    with pytest.raises(ConfigError, match=f"^here: .*{message}"):
        check_row(row, "here")
