"""What is printed cannot steer the terminal, whoever wrote it."""

import io
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.core.errors import ConfigError
from lillama.core.terminal import PlainFormatter, printable, show
from lillama.run.command_line import one_line
from tests.conftest import TINY_RUN

TITLE = "\x1b]0;owned\x07"


def steers(text):
    """The characters of a text by which a terminal does something else than show it."""
    return [
        c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t\u200c\u200d"
    ]


@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_nothing_that_steers_is_left_and_all_else_is(text):
    shown = printable(text)
    assert [c for c in steers(shown) if unicodedata.category(c) != "Cf"] == []
    if not steers(text):
        assert shown == text


@pytest.mark.parametrize(
    "harmful", [TITLE, "\x9b2J", "\r", "\b", "\u202e", "\u2066", "\ud800", "\x00", "\u2028", "\ufeff"]
)
def test_each_kind_is_spelt_out(harmful):
    assert steers(printable(f"a{harmful}b")) == []
    assert "\\" in printable(harmful)


def test_what_scripts_need_stays():
    text = "नमस्ते\u200d 日本\u200c語\n\t👩\u200d👩\u200d👧 é"
    assert printable(text) == text


def test_a_stream_that_lacks_letters_gets_them_spelt_out(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    show("é\x1b")
    assert stream.buffer.getvalue() == b"\\xe9\\x1b\n"


def test_the_log_is_plain():
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (TITLE,), None)
    assert PlainFormatter("%(message)s").format(record) == r"\x1b]0;owned\x07"


def test_an_error_is_plain_and_one_line(cli, tmp_path):
    assert one_line(ConfigError(f"a{TITLE}\nb")) == r"a\x1b]0;owned\x07 b"
    file = tmp_path / f"{TITLE.replace('/', '')}.jsonl"
    file.write_text("{")
    status, out, err = cli(*TINY_RUN, "data=local", f"data.path='{file}'", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 2
    assert steers(out + err) == []
    assert r"\x1b" in err


def test_a_traceback_is_plain(cli, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(TITLE)

    monkeypatch.setattr("lillama.run.pipeline.run", fail)
    status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path}")
    assert status == 1
    assert steers(err) == []
