"""Simple factual questions of our own: a reward for a right answer, and more if it is brief as well.

For example::

    What is the past tense of "fly"?

    The past tense is flew.

This answer gets 1: it has the word "flew", and fewer than 30 other characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import NoSettings, Task, TaskKind
from seedtune.tasks.data.rows import packaged

RIGHT = 0.4
"""Reward of a right, long answer; a right, brief one gets 1."""

FREE, LONG = 30, 90
"""Characters beyond the gold answer: up to FREE an answer is brief, from LONG on it is long, linear in between.

FREE leaves room for a short sentence around the gold answer, so that single words or fragments earn no more.
"""

WRONG = 0.3
"""Largest reward of a wrong answer, given to a brief one; an empty answer gets 0."""

READ = 20_000
"""Longest completion that is read, in characters; a longer one is not right."""

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_NUMBERS = {**{name: value for value, name in enumerate(_UNITS)}, **_TENS, "hundred": 100}

_WORD = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![^\W_])|[^\W_]+")
"""A number with decimals and thousands separators, or a run of letters and digits."""


def words(text: str) -> list[str]:
    """Split a text into case-folded words without punctuation; number words up to a hundred become digits."""
    found = [_plain(word) for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]
    made: list[str] = []
    for word, before in zip(found, ["", *found], strict=False):
        value = _NUMBERS.get(word)
        if value is not None and 0 < value < 10 and before in _TENS:
            made[-1] = str(_TENS[before] + value)
        elif value == 100 and before in ("a", "one"):
            made[-1] = "100"
        else:
            made.append(word if value is None else str(value))
    return made


def _plain(word: str) -> str:
    """Normalize a number, 1,000.0 to 1000, so that the 0 of 18.0 is not a word and 100.0 equals 100."""
    if not word[0].isdecimal() or not {".", ","} & {*word}:
        return word
    whole, _, decimals = word.replace(",", "").partition(".")
    return f"{whole}.{decimals}" if decimals.strip("0") else whole


def says(text: str, answers: Sequence[str]) -> bool:
    """Whether the text contains one of the answers as whole words."""
    if len(text) > READ:
        return False
    held = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(answer))} " in held for answer in answers)


def brevity(text: str, answers: Sequence[str]) -> float:
    """Return 1 for a brief text, 0 for a long one, linear in between (see `FREE` and `LONG`)."""
    extra = len(text.strip()) - max(map(len, answers))
    return min(1.0, max(0.0, (LONG - extra) / (LONG - FREE)))


def marks(text: str, answers: Sequence[str]) -> float:
    """Return `RIGHT` to 1 for a right answer, 0 to `WRONG` for a wrong one, more if brief; 0 for an empty one."""
    if not words(text):
        return 0.0
    lowest, highest = (RIGHT, 1.0) if says(text, answers) else (0.0, WRONG)
    return lowest + (highest - lowest) * brevity(text, answers)


def right_and_brief(completions: Sequence[Any], answers: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """Return `marks` of each completion; the column ``answers`` holds the accepted spellings of the gold answer."""
    return [marks(text_of(c), wanted) for c, wanted in zip(completions, answers, strict=True)]


def right_and_brief_task(_: NoSettings) -> Task:
    """Create the task: 178 training and 118 held-out questions.

    The reward is 0.4 to 1 for a right answer and at most 0.3 for a wrong one.
    """
    return Task(
        "right_and_brief",
        *packaged("right_and_brief"),
        rewards=(Reward("right_and_brief", right_and_brief),),
        gold=lambda example: str(example.columns["answers"][0]),
        full_marks=1.0,
        right_from=RIGHT,
    )


KIND = TaskKind(
    build=right_and_brief_task,
    what="a right answer to a simple question, in a short sentence",
    reward="0.4 for a right answer, up to 1 for a brief one",
    sizes=(178, 118),
)
