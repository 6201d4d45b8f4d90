"""Prepare docstrings for the API reference: examples as code, brackets of shapes as brackets, a line a parameter."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """An extension of griffe, which reads the package for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object, where it has one."""
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(map(rewritten, obj.docstring.value.split("\n\n")))


def rewritten(paragraph: str) -> str:
    """Return a paragraph of a docstring as the site's Markdown."""
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    text = re.sub(r"(?<=\S) (?=:param )", "\n", paragraph).replace("[", r"\[")
    return re.sub(r":param ([\w, ]+):((?:.|\n(?!:))*)", a_line_a_name, text)


def a_line_a_name(found: re.Match[str]) -> str:
    """Repeat what is said of several parameters for each of them."""
    return "\n".join(f":param {name}:{found[2]}" for name in found[1].split(", "))
