"""Forms that a row of data may have: plain text, an instruction with its answer, a conversation."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lillama.config import SystemTurns
from lillama.core.errors import ConfigError
from lillama.data.chat import Turn

TEXT_COLUMNS = ("text", "page", "content")
CONVERSATION_COLUMNS = ("conversations", "messages")
ROLES = {
    **{"human": "user", "prompter": "user"},
    **{"gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
    "function_call": "assistant",  # ShareGPT: the call as the assistant wrote it
    **{"observation": "tool", "function_response": "tool", "function": "tool", "ipython": "tool"},
}
Row = dict[str, Any]


class RowError(ConfigError):
    """A row cannot be read as text; the message begins with its file and line."""


class Rows(Sequence[Row]):
    """A sequence of rows that may be read one by one, as they are asked for, and that says where each is from.

    :raises RowError: by ``rows[index]``, for a row that cannot be read.
    """

    def where(self, index: int) -> str:
        """Name a row: its file and line."""
        raise NotImplementedError


class ListedRows(Rows):
    """Rows in memory."""

    def __init__(self, rows: Sequence[Any], source: str) -> None:
        self._rows = rows
        self._source = source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self._source}: row {index + 1}"


class CheckedRows(Rows):
    """Rows of a known form: each is checked as it is read.

    :raises RowError: by ``rows[index]``, also for a row of no known form.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        if fault := row_fault(row):
            raise RowError(f"{self.where(index)}: {fault}")
        return row

    def where(self, index: int) -> str:
        return self._rows.where(index)


def row_fault(row: Any) -> str | None:
    """Say why a row is of no known form; None for one that is."""
    if not isinstance(row, dict):
        return f"must be an object with columns, not {type(row).__name__}"
    column = conversation_column(row)
    if column is not None:
        return _turns_fault(row[column])
    if is_instruction(row) or is_plain(row):
        return None
    columns = sorted(map(str, row))
    return f"needs text, or instruction and output, or conversations; it has {columns}"


def _turns_fault(turns: Any) -> str | None:
    if not isinstance(turns, list) or not turns:
        return "a conversation must be a list of turns"
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            return f"turn {number} must be an object, not {type(turn).__name__}"
        role, content = _said(turn)
        try:
            words, calls = _words(content), _calls(turn)
        except TypeError as error:
            return f"turn {number}: {error}"
        if not isinstance(role, str) or (words is None and not calls):
            return f"turn {number}: a turn needs from and value, or role and content"
    return None


def is_instruction(row: Row) -> bool:
    """Tell a row that is an instruction and its answer."""
    return isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str)


def is_plain(row: Row) -> bool:
    """Tell a row that is plain text and nothing more: Alpaca's rows repeat their turns in a column ``text``."""
    turns = conversation_column(row) is not None or is_instruction(row)
    return not turns and any(isinstance(row.get(column), str) for column in TEXT_COLUMNS)


def conversation_column(row: Row) -> str | None:
    """Find the column that holds a row's turns, if it is a conversation.

    A column without turns (null, an empty list or cell) is none where another says more: files that were joined from
    several have the columns of all.
    """
    held = [column for column in CONVERSATION_COLUMNS if row.get(column) is not None]
    with_turns = [column for column in held if row[column]]
    if with_turns:
        return with_turns[0]
    other = is_instruction(row) or any(isinstance(row.get(column), str) for column in TEXT_COLUMNS)
    return None if other or not held else held[0]


def plain_text(row: Row) -> str:
    """Return a plain row's text."""
    return next(row[column] for column in TEXT_COLUMNS if isinstance(row.get(column), str))


def turns_of(row: Row, system: SystemTurns) -> list[Turn]:
    """Read a row as role/content turns; Alpaca's ``input`` follows its instruction after a blank line."""
    column = conversation_column(row)
    if column is None:
        user = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}]
    turns = [_turn(turn) for turn in row[column]]
    return [turn for turn in turns if system is SystemTurns.keep or turn["role"] != "system"]


def _turn(turn: Row) -> Turn:
    """Return a turn as chat templates take it; what is null stays out."""
    role, content = _said(turn)
    made: Turn = {"role": ROLES.get(role, role), "content": _words(content) or ""}
    if calls := _calls(turn):
        made["tool_calls"] = calls
    return made | {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key) is not None}


def _said(turn: Row) -> tuple[Any, Any]:
    if turn.get("from") is not None:
        return turn["from"], turn.get("value")
    return turn.get("role"), turn.get("content")


def _words(content: Any) -> str | None:
    """Return the text of a turn's content: a string, or a list of parts.

    :raises TypeError: for a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError(f"its content must be text or a list of parts, not {type(content).__name__}")
    return "\n".join(_part_words(part) for part in content)


def _part_words(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise TypeError(f"a part of the type {kind} is no text")


def _calls(turn: Row) -> list[Row]:
    """Return the calls of tools in a turn, each with its ``function``; OpenAI's older ``function_call`` is one.

    :raises TypeError: for a call without a function's name.
    """
    held = turn.get("tool_calls") or []
    if not held and turn.get("function_call"):
        held = [turn["function_call"]]
    calls = []
    for call in held if isinstance(held, list) else [held]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise TypeError("a call of a tool needs the name of its function")
        calls.append(call if "function" in call else {"type": "function", "function": call})
    return calls


def joined_turns(turns: Iterable[Turn]) -> str:
    """Join turns by blank lines, without a chat template; calls of tools as JSON."""
    parts = []
    for turn in turns:
        calls = (json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", []))
        parts += [turn["content"], *calls]
    return "\n\n".join(part for part in parts if part)
