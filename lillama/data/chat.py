"""Turns of a conversation through a tokenizer's chat template."""

import json
from collections.abc import Iterator
from typing import Any

from lillama.config import SystemTurns, Template

Turn = dict[str, Any]
SPEAKERS = ("user", "assistant")


class TemplateError(ValueError):
    """A chat template cannot render a conversation, or leaves out a part of it."""


def uses_template(tokenizer: Any, template: Template) -> bool:
    """Tell whether turns go through a chat template."""
    return template is Template.auto and bool(getattr(tokenizer, "chat_template", None))


def nameless_templates(tokenizer: Any) -> list[str]:
    """List the names of a tokenizer's chat templates where it has several and none is the default."""
    held = getattr(tokenizer, "chat_template", None)
    return sorted(held) if isinstance(held, dict) and "default" not in held else []


def render(turns: list[Turn], tokenizer: Any, system: SystemTurns) -> str:
    """Render turns as the text that the tokenizer's chat template makes of them.

    Where the template knows no system role, a system turn opens the user's turn after it.

    :param system: with ``drop``, the system prompt that some templates put before the turns is left out as well.
    :raises TemplateError: for turns that the template refuses, or that it leaves out.
    """
    return _with_system(turns, tokenizer) if system is SystemTurns.keep else _without_system(turns, tokenizer)


def _without_system(turns: list[Turn], tokenizer: Any) -> str:
    """Turns through a template that would put a system prompt of its own before them: it is rendered and cut off."""
    prompt = [{"role": "system", "content": "-"}]
    try:
        text = _applied([*prompt, *map(_with_objects, turns)], tokenizer)
        opening = _applied(prompt, tokenizer)
        _check_whole(turns, text)
    except TemplateError:  # no system role, so no default one either
        return _with_system(turns, tokenizer)
    if not text.startswith(opening):
        return _with_system(turns, tokenizer)
    bos = tokenizer.bos_token or ""
    return (bos if opening.startswith(bos) else "") + text.removeprefix(opening)


def _with_system(turns: list[Turn], tokenizer: Any) -> str:
    refusal = None
    for variant in _variants(turns):
        try:
            text = _applied(variant, tokenizer)
            _check_whole(variant, text)
            return text
        except TemplateError as error:
            refusal = refusal or error
    raise refusal or TemplateError("there are no turns")


def _variants(turns: list[Turn]) -> Iterator[list[Turn]]:
    """Yield the same conversation in the forms that templates differ in, the usual one first."""
    called = any(turn.get("tool_calls") for turn in turns)
    forms = [[_with_objects(turn) for turn in turns], turns] if called else [turns]
    yield from forms
    for form in forms:
        if (folded := _folded(form)) is not None:
            yield folded


def _with_objects(turn: Turn) -> Turn:
    """A turn whose calls have their arguments as an object, as most templates want them; OpenAI has them as JSON."""
    calls = [call | {"function": _with_object(call["function"])} for call in turn.get("tool_calls", [])]
    return turn | {"tool_calls": calls} if calls else turn


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    try:
        return function | {"arguments": json.loads(function["arguments"])}
    except (KeyError, TypeError, ValueError):
        return function


def _folded(turns: list[Turn]) -> list[Turn] | None:
    """Turns without a system role: its words open the turn after it. None where nothing is gained by it."""
    folded: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        else:
            folded.append(turn | {"content": "\n\n".join([*waiting, turn["content"]])} if waiting else turn)
            waiting = []
    return None if waiting or len(folded) == len(turns) else folded


def _applied(turns: list[Turn], tokenizer: Any) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # noqa: BLE001 - a template is foreign code and may raise anything
        reason = " ".join(str(error).split())[:200]
        raise TemplateError(f"the chat template refuses it ({reason or type(error).__name__})") from None


def _check_whole(turns: list[Turn], text: str) -> None:
    """Raise where a template leaves out, without a word, turns of a role that it does not know.

    What users and assistants say may be changed (thoughts are cut from earlier answers), but not all of it is lost.
    """
    for turn in turns:
        if turn["role"] not in SPEAKERS and not _shown(turn["content"], text):
            raise TemplateError(f"the chat template leaves out the turn of the role {turn['role']}")
        for call in turn.get("tool_calls", []):
            name = call["function"]["name"]
            if text.count(name) <= sum(said["content"].count(name) for said in turns):
                raise TemplateError(f"the chat template leaves out the call of {name}")
    spoken = [turn["content"] for turn in turns if turn["content"].strip()]
    if spoken and not any(_shown(content, text) for content in spoken):
        raise TemplateError("the chat template leaves out what the turns say")


def _shown(content: str, text: str) -> bool:
    words = content.strip()
    return words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text
