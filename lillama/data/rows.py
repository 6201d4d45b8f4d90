"""What a row of data says: plain text, an instruction, or a conversation; and its text for a tokenizer."""

from typing import Any

from lillama.config import SystemTurns, Template
from lillama.errors import ConfigError

TEXT_COLUMNS = ("text", "page", "content")
CONVERSATION_COLUMNS = ("conversations", "messages")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
Turn = dict[str, str]


def check_row(row: Any, where: str) -> None:
    """Raise a :class:`ConfigError` that begins with ``where`` unless the row is of a known form."""
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: must be an object with columns, not {type(row).__name__}")
    if conversation_column(row) is not None:
        _check_turns(row[conversation_column(row)], where)
    elif not is_instruction(row) and not is_plain(row):
        columns = sorted(row)
        raise ConfigError(f"{where}: needs text, or instruction and output, or conversations; it has {columns}")


def _check_turns(turns: Any, where: str) -> None:
    if not isinstance(turns, list) or not turns:
        raise ConfigError(f"{where}: a conversation must be a list of turns")
    for turn in turns:
        keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in keys):
            raise ConfigError(f"{where}: a turn needs from and value, or role and content")


def is_instruction(row: dict[str, Any]) -> bool:
    """Whether a row is an instruction and its answer."""
    return isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str)


def is_plain(row: dict[str, Any]) -> bool:
    """Whether a row is plain text and nothing more: Alpaca's rows repeat their turns in a column ``text``."""
    turns = conversation_column(row) is not None or is_instruction(row)
    return not turns and any(isinstance(row.get(column), str) for column in TEXT_COLUMNS)


def conversation_column(row: dict[str, Any]) -> str | None:
    """The column that holds a row's turns, if it is a conversation."""
    return next((column for column in CONVERSATION_COLUMNS if column in row), None)


def plain_text(row: dict[str, Any]) -> str:
    """A plain row's text."""
    return next(row[column] for column in TEXT_COLUMNS if isinstance(row.get(column), str))


def turns_of(row: dict[str, Any], system: SystemTurns) -> list[Turn]:
    """A row as role/content turns; Alpaca's ``input`` follows its instruction after a blank line."""
    column = conversation_column(row)
    if column is None:
        user = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}]
    turns = []
    for turn in row[column]:
        role, content = (turn["from"], turn["value"]) if "from" in turn else (turn["role"], turn["content"])
        turns.append({"role": ROLES.get(role, role), "content": content})
    return [turn for turn in turns if system is SystemTurns.keep or turn["role"] != "system"]


def row_text(row: dict[str, Any], tokenizer: Any, template: Template, system: SystemTurns) -> str:
    """A row as one string: plain text as it is, turns through the chat template or joined by blank lines."""
    if is_plain(row):
        return plain_text(row)
    turns = turns_of(row, system)
    if not uses_template(tokenizer, template):
        return "\n\n".join(turn["content"] for turn in turns if turn["content"])
    return _templated(turns, tokenizer) if system is SystemTurns.keep else _without_system(turns, tokenizer)


def uses_template(tokenizer: Any, template: Template) -> bool:
    """Whether turns go through a chat template."""
    return template is Template.auto and bool(getattr(tokenizer, "chat_template", None))


def _without_system(turns: list[Turn], tokenizer: Any) -> str:
    """Turns through a template that would put a system prompt of its own before them: it is rendered and cut off."""
    from jinja2 import TemplateError

    prompt = [{"role": "system", "content": "-"}]
    try:
        text = tokenizer.apply_chat_template([*prompt, *turns], tokenize=False)
        opening = tokenizer.apply_chat_template(prompt, tokenize=False)
    except TemplateError:  # no system role, so no default one either
        return _templated(turns, tokenizer)
    if not text.startswith(opening):
        return _templated(turns, tokenizer)
    bos = tokenizer.bos_token or ""
    return (bos if opening.startswith(bos) else "") + text.removeprefix(opening)


def _templated(turns: list[Turn], tokenizer: Any) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        # Templates of some families know no system role: its words then open the first user turn.
        system = [turn["content"] for turn in turns if turn["role"] == "system"]
        others = [dict(turn) for turn in turns if turn["role"] != "system"]
        if not system or not others:
            raise
        others[0]["content"] = "\n\n".join([*system, others[0]["content"]])
        return tokenizer.apply_chat_template(others, tokenize=False)
