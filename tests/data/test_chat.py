"""Chat templates, each a way in which families differ."""

import pytest

from lillama.config import InvalidRows, SystemTurns, Template
from lillama.core.errors import ConfigError
from lillama.data.rows import RowError
from lillama.data.texts import RowTexts
from tests.data.test_rows import ALPACA, OPENAI, SHAREGPT, TOOLS

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
RAISING = "{{ raise_exception('no system role') }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}" + RAISING + "{% endif %}" + CHATML
DEFAULT_PROMPT = "<bos>{% if messages[0].role != 'system' %}<system>default{% endif %}" + CHATML
IN_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
SPEAKERS_ONLY = "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"  # fmt: skip  # noqa: E501
WITH_TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}{{ m.content }}{% endfor %}"
)
JOINING_ARGUMENTS = WITH_TOOLS.replace("c.function.arguments.city", "'json ' + c.function.arguments")
THOUGHTLESS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"


def turns(*said):
    return {"conversations": [{"from": role, "value": words} for role, words in said]}


def rendered(row, tokenizer, template, system=SystemTurns.keep):
    tokenizer.chat_template = template
    (text,) = RowTexts([row], tokenizer, template=Template.auto, system=system)
    assert text.templated
    return text.text


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI])
def test_turns_go_through_the_template(row, tokenizer):
    assert rendered(row, tokenizer, CHATML) == "<system>S<user>Q<assistant>A"
    assert rendered(row, tokenizer, CHATML, SystemTurns.drop) == "<user>Q<assistant>A"


def test_an_instruction_is_a_turn_and_its_input_belongs_to_it(tokenizer):
    assert rendered(ALPACA, tokenizer, CHATML) == "<user>Q\n\nI<assistant>A"
    assert rendered(ALPACA | {"input": ""}, tokenizer, CHATML) == "<user>Q<assistant>A"
    assert rendered(ALPACA | {"text": "Below is Q A"}, tokenizer, CHATML) == "<user>Q\n\nI<assistant>A"


@pytest.mark.parametrize("template", [NO_SYSTEM, SPEAKERS_ONLY])
def test_a_template_without_a_system_role_gets_its_words_in_the_next_turn(template, tokenizer):
    assert rendered(SHAREGPT, tokenizer, template) == "<user>S\n\nQ<assistant>A"


def test_a_system_turn_in_the_middle_opens_the_turn_after_it(tokenizer):
    row = turns(("human", "a"), ("gpt", "b"), ("system", "be brief"), ("human", "c"))
    assert rendered(row, tokenizer, IN_TURNS) == "<user>a<assistant>b<user>be brief\n\nc"
    assert rendered(row, tokenizer, CHATML) == "<user>a<assistant>b<system>be brief<user>c"


def test_dropping_system_turns_drops_the_templates_own_prompt_too(tokenizer):
    assert rendered(ALPACA, tokenizer, DEFAULT_PROMPT) == "<bos><system>default<user>Q\n\nI<assistant>A"
    for row in (SHAREGPT, ALPACA | {"input": ""}):
        assert rendered(row, tokenizer, DEFAULT_PROMPT, SystemTurns.drop) == "<bos><user>Q<assistant>A"
    assert rendered(SHAREGPT, tokenizer, NO_SYSTEM, SystemTurns.drop) == "<user>Q<assistant>A"


@pytest.mark.parametrize(
    ("template", "call"), [(WITH_TOOLS, "[weather Oslo]"), (JOINING_ARGUMENTS, '[weather json {"city": "Oslo"}]')]
)
def test_calls_of_tools_are_rendered_with_arguments_as_the_template_takes_them(template, call, tokenizer):
    text = f"<user>weather?<assistant>{call}<tool>4C<assistant>4 degrees"
    assert rendered(TOOLS, tokenizer, template) == text
    assert rendered(TOOLS, tokenizer, template, SystemTurns.drop) == text


def test_the_names_that_data_sets_have_for_roles_are_those_of_templates(tokenizer):
    row = turns(("human", "1"), ("function_call", "{}"), ("observation", "4C"), ("gpt", "2"))
    assert rendered(row, tokenizer, CHATML) == "<user>1<assistant>{}<tool>4C<assistant>2"


def test_a_template_may_cut_thoughts_from_answers(tokenizer):
    row = turns(("human", "1"), ("gpt", "<think>hm</think>2"))
    assert rendered(row, tokenizer, THOUGHTLESS) == "<user>1<assistant>2"


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (IN_TURNS, turns(("gpt", "hello"), ("human", "hi")), "refuses it .*roles must alternate"),
        (IN_TURNS, turns(("human", "1"), ("human", "2"), ("gpt", "3")), "refuses it .*roles must alternate"),
        (IN_TURNS, turns(("human", "1"), ("gpt", "2"), ("system", "3")), "refuses it .*roles must alternate"),
        (
            SPEAKERS_ONLY,
            turns(("human", "1"), ("gpt", "2"), ("observation", "3")),
            "leaves out the turn of the role tool",
        ),
        (CHATML, TOOLS, "leaves out the call of weather"),
        ("nothing", OPENAI, "leaves out"),
        ("{% for x in messages[0].content.none() %}{% endfor %}", OPENAI, "refuses it"),
        ("{% for", OPENAI, "refuses it"),
    ],
)
def test_turns_that_a_template_refuses_or_leaves_out_are_refused_or_skipped_and_counted(
    template, row, message, tokenizer
):
    tokenizer.chat_template = template
    with pytest.raises(RowError, match=rf"^data: row 2: the chat template {message}") as caught:
        list(RowTexts([{"text": "fine"}, row], tokenizer))
    assert "\n" not in str(caught.value)
    texts = RowTexts([{"text": "fine"}, row, {"text": "too"}], tokenizer, invalid=InvalidRows.skip)
    assert [text.text for text in texts] == ["fine", "too"]
    assert texts[1] is None, "a row that is read again"
    assert texts.counts.as_dict() == {"skipped_rows": 1, "replaced_characters": 0}


def test_named_templates_without_a_default_are_refused_where_turns_need_one(tokenizer):
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    for invalid in InvalidRows:
        with pytest.raises(ConfigError, match=r"^finetune\.data\.template=auto: .*\(rag, tool_use\); give none"):
            list(RowTexts([OPENAI], tokenizer, invalid=invalid, key="finetune.data"))
    assert [text.text for text in RowTexts([{"text": "T"}], tokenizer)] == ["T"]
    assert [text.text for text in RowTexts([OPENAI], tokenizer, template=Template.none)] == ["S\n\nQ\n\nA"]
    assert rendered(OPENAI, tokenizer, {"default": CHATML, "rag": "x"}) == "<system>S<user>Q<assistant>A"
