"""What is printed can only be read: no completion, file name or error moves a cursor or changes a terminal."""

from __future__ import annotations

import io
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from seedtune.cli import console
from seedtune.cli.console import LogLines, PlainConsole, plain, say, say_table

HOSTILE = {
    "colour": "\x1b[31mred",
    "clipboard": "\x1b]52;c;aGk=\x07",
    "C1": "\x9b2J\x9d0;title\x9c",
    "overwritten": "reward 0\rreward 1",
    "backspace": "no\x08\x08ok",
    "reversed": "\u202egnp.exe",
    "isolated": "\u2066a\u2069",
}
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_is_shown_with_what_a_terminal_would_obey_as_escapes(text, capsys):
    say(text)
    say_table(("text", "styled"), [(text, Text.assemble(text, (text, "red")))], title=text, texts=True)
    console.error_console().print(f"error: {text}")
    output, errors = capsys.readouterr()
    assert not OBEYED.search(output + errors)
    assert plain(text) in output
    assert plain(text) in errors
    assert "\\u" in plain(text)


def test_columns_stay_in_line(capsys):
    say_table(("a", "b"), [("\x1b[2J", "x"), ("long enough text", "y")])
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith(("x │", "y │")))
    assert len(first) == len(second)


def test_warnings_are_printed_in_the_same_way(capsys):
    LogLines().handle(logging.makeLogRecord({"msg": "the reward %r said %s", "args": ("f", "\x1b[2J\n  line 2")}))
    assert capsys.readouterr().err == "the reward 'f' said \\u001b[2J\n  line 2\n"


def test_ordinary_text_is_left_alone():
    text = "σ 日本語 שלום 👩‍💻 naïve\n\tindented"
    assert plain(text) == text


@given(st.text())
def test_nothing_that_a_terminal_obeys_comes_through(text):
    file = io.StringIO()
    PlainConsole(file=file, width=80, markup=False, emoji=False, highlight=False).print(text)
    assert not OBEYED.search(file.getvalue().replace("\t", ""))
