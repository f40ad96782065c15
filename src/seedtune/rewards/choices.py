"""Multiple choice: which letter a completion settles on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.completions import text_of

LETTERS = "ABCDEFGHIJ"
LENGTH = 50_000
"""Characters of an answer; a longer one chooses nothing."""
WORDS = 100
"""Characters of a line that may be the words of a choice."""
# A letter in brackets or by itself, not the beginning of a word ("A dog" is an article) unless a mark follows.
_LETTER = r"[*_( \t]{0,4}([A-J])(?=[*_)]{0,3}(?:[.:),;\n]|[ \t]{0,4}$|[ \t]{1,4}(?!\w)))"
_SAID = re.compile(
    r"(?i:answer|choice|option)[*_]{0,2}[ \t]{0,4}(?i:is|:)?[*_]{0,2}[ \t]{0,4}:?" + _LETTER, re.MULTILINE
)
_ALONE = re.compile(r"[*_(\[ ]{0,4}([A-Ja-j])[*_)\].: ]{0,4}", re.ASCII)
_LINE = re.compile(r"[*_( ]{0,4}([A-J])[*_]{0,2}[.):][ \t].{0,400}", re.ASCII)


def letter_right(
    completions: Sequence[Any], choices: Sequence[Sequence[str]], answer_index: Sequence[int], **_: Any
) -> list[float]:
    """1 if a completion chooses the letter of ``choices[answer_index]``, else 0."""
    rows = zip(completions, choices, answer_index, strict=True)
    return [float(chosen(text_of(c), offered) == right) for c, offered, right in rows]


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice: the ``<answer>`` if tagged, else what it says the answer is last, else all of it.

    All of it means a letter with nothing beside it, one line like ``B) Paris``, or the words of one choice.  None if
    it chooses nothing, or only lists letters.
    """
    part = _settled(text)
    letter = _letter(part)
    if letter is not None:
        return _index(letter, choices)
    same = [index for index, words in enumerate(choices) if part.strip(" .*").lower() == words.strip(" .").lower()]
    return same[0] if len(same) == 1 else None


def choice_said(text: str) -> str:
    """The letter that a completion chooses, whatever the choices are, else its words if they are one short line.

    Empty if it says more, and so chooses nothing.
    """
    part = _settled(text)
    letter = _letter(part)
    if letter is not None:
        return letter
    return "" if "\n" in part or len(part) > WORDS else part.strip(" .*").lower()


def _settled(text: str) -> str:
    """What decides: the ``<answer>`` if tagged, else the letter it says last, else all; nothing of a text too long."""
    if len(text) > LENGTH:
        return ""
    inside = tagged(text)
    if inside is not None:
        return inside
    said = _SAID.findall(text)
    return said[-1] if said else text.strip()


def _letter(text: str) -> str | None:
    """The letter that stands alone or begins the one line there is."""
    found = _ALONE.fullmatch(text) or _LINE.fullmatch(text)
    return None if found is None else found[1].upper()


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = LETTERS.index(letter)
    return index if index < len(choices) else None
