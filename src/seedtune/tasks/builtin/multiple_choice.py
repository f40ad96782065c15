"""Multiple choice: generated sums, comparisons and odd-one-out questions, and parsing the chosen letter.

The rows also fit log-probability objectives.  For example::

    Which of these does not belong to the tools?
    A) saw
    B) zinc
    C) chisel
    D) file
    Answer with the letter of the right choice.

    The answer is B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import chat

LETTERS = "ABCDEFGHIJ"
LENGTH = 50_000
"""Longest answer in characters; a longer one chooses nothing."""
WORDS = 100
"""Longest line, in characters, that may be the text of a choice."""
# A letter in brackets or alone, not before another word ("A dog" is an article) unless punctuation follows.
_LETTER = r"[*_( \t]{0,4}([A-J])(?=[*_)]{0,3}(?:[.:),;\n]|[ \t]{0,4}$|[ \t]{1,4}(?!\w)))"
_SAID = re.compile(
    r"(?i:answer|choice|option)[*_]{0,2}[ \t]{0,4}(?i:is|:)?[*_]{0,2}[ \t]{0,4}:?" + _LETTER, re.MULTILINE
)
_ALONE = re.compile(r"[*_(\[ ]{0,4}([A-Ja-j])[*_)\].: ]{0,4}", re.ASCII)
_LINE = re.compile(r"[*_( ]{0,4}([A-J])[*_]{0,2}[.):][ \t].{0,400}", re.ASCII)


def letter_right(
    completions: Sequence[Any], choices: Sequence[Sequence[str]], answer_index: Sequence[int], **_: Any
) -> list[float]:
    """Return 1 if a completion chooses the letter of ``choices[answer_index]``, else 0."""
    rows = zip(completions, choices, answer_index, strict=True)
    return [float(chosen(text_of(c), offered) == right) for c, offered, right in rows]


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """Return the index of the chosen answer, or None if the text chooses none or only lists letters.

    Reads the ``<answer>`` if tagged, else the last "the answer is X", else the whole text, which must be a letter
    alone, one line like ``B) Paris``, or the words of one choice.
    """
    part = _settled(text)
    letter = _letter(part)
    if letter is not None:
        return LETTERS.index(letter) if letter in LETTERS[: len(choices)] else None
    same = [index for index, words in enumerate(choices) if part.strip(" .*").lower() == words.strip(" .").lower()]
    return same[0] if len(same) == 1 else None


def choice_said(text: str) -> str:
    """Return the chosen letter without knowing the choices, else the text if it is one short line, for majority votes.

    Empty for longer texts, which choose nothing.
    """
    part = _settled(text)
    is_words = "\n" not in part and len(part) <= WORDS
    return _letter(part) or (part.strip(" .*").lower() if is_words else "")


def _settled(text: str) -> str:
    """Return the deciding part: the ``<answer>``, else the last stated letter, else all; empty for too long a text."""
    if len(text) > LENGTH:
        return ""
    inside = tagged(text)
    if inside is not None:
        return inside
    letters = _SAID.findall(text)
    return letters[-1] if letters else text.strip()


def _letter(text: str) -> str | None:
    """Return the letter that is the whole text or begins its only line, or None."""
    found = _ALONE.fullmatch(text) or _LINE.fullmatch(text)
    return None if found is None else found[1].upper()


GROUPS = {
    "animals": ("horse", "cat", "whale", "eagle", "frog", "ant", "goat", "shark"),
    "colours": ("red", "blue", "green", "yellow", "purple", "white", "brown", "grey"),
    "fruits": ("apple", "pear", "banana", "cherry", "plum", "lemon", "grape", "mango"),
    "tools": ("hammer", "saw", "drill", "wrench", "chisel", "pliers", "screwdriver", "file"),
    "metals": ("iron", "copper", "gold", "silver", "zinc", "tin", "lead", "nickel"),
    "instruments": ("piano", "violin", "flute", "trumpet", "drum", "harp", "guitar", "cello"),
}


class ChoiceSettings(Sizes):
    """Settings of the generated questions."""

    choices: int = Field(default=4, ge=2, le=6)
    """Choices per question."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the right choice and the wrong ones."""

    asked: str
    right: str
    wrong: Sequence[str]


def multiple_choice(settings: ChoiceSettings) -> Task:
    """Create questions with lettered choices; reward 1 for the right letter."""
    return Task(
        "multiple_choice",
        *splits("multiple_choice", settings, partial(_row, settings.choices), _identity),
        rewards=(Reward("letter", letter_right),),
        gold=lambda example: f"The answer is {example.columns['answer']}.",
        full_marks=1.0,
        answer=choice_said,
    )


def _identity(row: DataRow) -> tuple[str, ...]:
    """Return the question without its choices, and the choices in a fixed order."""
    return (row["prompt"][0]["content"].partition("\n")[0], *sorted(row["choices"]))


def _row(count: int, draws: Draws) -> DataRow | None:
    made = draws.choice(KINDS)(draws, count)
    if len({made.right, *made.wrong}) < count:
        return None
    choices = draws.sample([made.right, *made.wrong], count)
    place = choices.index(made.right)
    listed = "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))
    prompt = chat(f"{made.asked}\n{listed}\nAnswer with the letter of the right choice.")
    return {"prompt": prompt, "choices": choices, "answer_index": place, "answer": LETTERS[place]}


def _sum(draws: Draws, count: int) -> Question:
    a, b = draws.between(11, 99), draws.between(11, 99)
    offsets = draws.sample((-20, -10, -9, -2, -1, 1, 2, 9, 10, 20), count - 1)
    return Question(f"What is {a} + {b}?", str(a + b), [str(a + b + offset) for offset in offsets])


def _product(draws: Draws, count: int) -> Question:
    a, b = draws.between(3, 12), draws.between(3, 12)
    offsets = draws.sample((-a, -b, -2, -1, 1, 2, a, b, 10), count - 1)
    return Question(f"What is {a} × {b}?", str(a * b), [str(a * b + offset) for offset in offsets])


def _largest(draws: Draws, count: int) -> Question:
    numbers = [draws.between(100, 9999) for _ in range(count)]
    word, pick = draws.choice((("largest", max), ("smallest", min)))
    right = pick(numbers)
    return Question(f"Which number is the {word}?", str(right), [str(n) for n in numbers if n != right])


def _odd_one_out(draws: Draws, count: int) -> Question:
    kind, other = draws.sample(tuple(GROUPS), 2)
    right, wrong = draws.choice(GROUPS[other]), draws.sample(GROUPS[kind], count - 1)
    return Question(f"Which of these does not belong to the {kind}?", right, wrong)


KINDS: tuple[Callable[[Draws, int], Question], ...] = (_sum, _product, _largest, _odd_one_out)


KIND = TaskKind(
    build=multiple_choice,
    settings=ChoiceSettings,
    what="sums, orders and odd ones out, by letter",
    reward="1 for the right letter",
    sizes=(2000, 200),
)
