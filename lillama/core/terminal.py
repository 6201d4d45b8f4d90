"""Text for a terminal: what could move its cursor, set its title or turn its lines round is spelt out."""

import logging
import re
import sys

# Controls but newline and tab, invisible and reordering format characters, lone surrogates; joiners of scripts stay.
SPELT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    r"""Spell out the control characters of a text, as ``\x1b``; its lines and tabs stay."""
    return SPELT.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def show(text: object = "", *, error: bool = False) -> None:
    """Print a text whose parts may come from files of others, on standard output or standard error."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class PlainFormatter(logging.Formatter):
    """Format log records as :func:`printable` text."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return printable(super().format(record))
