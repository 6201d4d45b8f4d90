import pytest

from lillama.config import SystemTurns, Template
from lillama.data.rows import CheckedRows, ListedRows, RowError, row_fault
from lillama.data.texts import row_text

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
# As Arrow gives them back: every turn has every key of any turn, every row every column of any row.
UNIFIED_TURN = {"from": None, "value": None, "role": "user", "content": "Q", "tool_calls": None, "name": None}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = {
    "messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "4C"},
        {"role": "assistant", "content": "4 degrees"},
    ]
}


def plain(row, tokenizer):
    assert row_fault(row) is None
    return row_text(row, tokenizer, Template.none, SystemTurns.keep)


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI])
def test_both_forms_of_conversation_read_alike(row, tokenizer):
    assert plain(row, tokenizer) == "S\n\nQ\n\nA"
    assert row_text(row, tokenizer, Template.none, SystemTurns.drop) == "Q\n\nA"


@pytest.mark.parametrize("empty", [None, [], ""])
@pytest.mark.parametrize(
    ("row", "text"), [(OPENAI, "S\n\nQ\n\nA"), (SHAREGPT, "S\n\nQ\n\nA"), (ALPACA, "Q\n\nI\n\nA"), ({"text": "T"}, "T")]
)
def test_empty_columns_of_joined_files_are_no_conversations(row, text, empty, tokenizer):
    unified = {"conversations": empty, "messages": empty, "instruction": None, "output": None, "text": None}
    assert plain(unified | row, tokenizer) == text


def test_null_keys_of_unified_turns_are_not_there(tokenizer):
    other = {"from": "gpt", "value": "A", "role": None, "content": None, "tool_calls": [], "name": None}
    assert plain({"messages": [UNIFIED_TURN, other]}, tokenizer) == "Q\n\nA"


def test_the_text_parts_of_a_turn_are_its_words(tokenizer):
    parts = [{"type": "text", "text": "one", "image": None}, "two"]
    assert plain({"messages": [{"role": "user", "content": parts}]}, tokenizer) == "one\ntwo"


def test_calls_of_tools_are_read_as_json_where_there_is_no_template(tokenizer):
    told = '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}'
    assert plain(TOOLS, tokenizer) == f"weather?\n\n{told}\n\n4C\n\n4 degrees"
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    assert plain({"messages": [old]}, tokenizer) == told


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["text"], "must be an object"),
        ({"prompt": "x"}, r"needs text, or instruction and output, or conversations; it has \['prompt'\]"),
        ({"text": None, 3: 1}, r"needs text.* it has \['3', 'text'\]"),
        ({"text": float("nan")}, "needs text"),
        ({"instruction": "x"}, "it has"),
        ({"conversations": "x"}, "list of turns"),
        ({"conversations": []}, "list of turns"),
        ({"conversations": ["x"]}, "turn 1 must be an object"),
        ({"conversations": [{"from": "human"}]}, "turn 1: a turn needs"),
        ({"conversations": [{"from": 1, "value": "x"}]}, "turn 1: a turn needs"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1: a turn needs"),
        ({"messages": [UNIFIED_TURN, {"role": "user", "content": 1}]}, "turn 2: its content must be text or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
            "of the type image is no text",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "turn 1: a call of a tool needs the name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]}, "needs the name"),
    ],
)
def test_other_rows_are_refused_by_their_place(row, message):
    with pytest.raises(RowError, match=f"^here: row 1: .*{message}"):
        CheckedRows(ListedRows([row], "here"))[0]
