"""Add the generated pages of the documentation: README, experiments, changelog, and a reference of every key.

MkDocs calls these functions (``hooks:`` in ``mkdocs.yml``). A text has one home; here only its links are turned.
"""

import inspect
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lillama.config.compose import CONF, set_up
from lillama.config.option import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site, and their names there.
PAGES = {
    "README.md": "index.md",
    "experiments/README.md": "experiments.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    set_up()
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=turned((ROOT / source).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn the links of a page of ``docs/`` that lead out of it."""
    return turned(markdown)


def turned(text: str) -> str:
    """Return a text whose links to files of the repository lead to pages of the site."""
    for source, name in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({name}", text)
    return re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def reference() -> str:
    """Return the page of every group: its options with their comments, its keys with types and defaults."""
    parts = ["# Configuration reference", "Written from the schemas in `lillama/config` and the comments in `conf/`."]
    for group, schemas in sorted(SCHEMAS.items(), key=lambda item: item[0] or ""):
        parts.append(f"## {group or 'a run as a whole'}")
        parts += options(group) if group else []
        parts += [schema_table(schema) for schema in schemas.values()]
    return "\n\n".join(parts)


def options(group: str) -> list[str]:
    """Return the options of a group as a list, each with the first lines of its file."""
    lines = [f"- `{file.stem}`: {comment(file)}" for file in sorted((CONF / group).glob("*.yaml"))]
    return ["\n".join(lines)] if lines else []


def comment(file: Path) -> str:
    """Return the comment that a file begins with."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line != "# @package _global_"]
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])


def schema_table(schema: Any) -> str:
    """Return a schema's docstring and its keys as a table."""
    rows = [f"| `{field.name}` | `{kind(field)}` | `{default(field)}` |" for field in fields(schema)]
    head = [f"**{schema.__name__}**: {inspect.getdoc(schema)}", "", "| key | type | default |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows])


def kind(field: Field[Any]) -> str:
    """Return a field's type in words: the members of an enum by name."""
    if isinstance(field.type, type) and issubclass(field.type, Enum):
        return ", ".join(member.name for member in field.type)
    words = str(field.type) if get_args(field.type) else getattr(field.type, "__name__", str(field.type))
    return re.sub(r"\b(?:\w+\.)+", "", words).replace("|", "or")


def default(field: Field[Any]) -> str:
    """Return a field's default in words; ``required`` where there is none."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING or value == "???":
        return "required"
    if is_dataclass(value):
        return type(value).__name__
    if isinstance(value, list):
        return "[" + ", ".join(one.name if isinstance(one, Enum) else str(one) for one in value) + "]"
    return value.name if isinstance(value, Enum) else str(value)
