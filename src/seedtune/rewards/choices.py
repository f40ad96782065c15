"""Multiple choice: which letter a completion settles on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from seedtune.rewards.formats import tagged
from seedtune.rewards.length import text_of

LETTERS = "ABCDEFGHIJ"
LENGTH = 50_000
"""Characters of an answer; a longer one chooses nothing."""
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
    if len(text) > LENGTH:
        return None
    inside = tagged(text)
    if inside is not None:
        return _whole(inside, choices)
    said = _SAID.findall(text)
    return _index(said[-1], choices) if said else _whole(text.strip(), choices)


def _whole(text: str, choices: Sequence[str]) -> int | None:
    for pattern in (_ALONE, _LINE):
        found = pattern.fullmatch(text)
        if found is not None:
            return _index(found[1], choices)
    same = [index for index, words in enumerate(choices) if text.strip(" .*").lower() == words.strip(" .").lower()]
    return same[0] if len(same) == 1 else None


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = LETTERS.index(letter.upper())
    return index if index < len(choices) else None
