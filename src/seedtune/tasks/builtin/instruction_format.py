"""Verifiable instructions on the format of an answer, in the style of IFEval (arXiv 2311.07911), combined here.

For example::

    Write a short text about tea. Your answer
    * is written in lower case only
    * ends with the words 'the end' and nothing after them

    i like tea. the end
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import Field

from seedtune.errors import RewardError, suggest
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import chat
from seedtune.types import Example

LENGTH = 50_000
"""Longest answer in characters; a longer one scores 0."""
MARKS = ("- ", "* ", "• ")
"""Beginnings of a bullet point."""

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "bullets": lambda text, count: sum(map(_is_point, text.split("\n"))) == count,
    "lower_case": lambda text, _: text.islower(),
    "upper_case": lambda text, _: text.isupper(),
    "ends_with": lambda text, phrase: text.rstrip().lower().endswith(phrase.lower()),
    "starts_with": lambda text, phrase: text.lstrip(" \t\n-*•").lower().startswith(phrase.lower()),
    "word_count": lambda text, count: len(_words(text)) == count,
    "keywords": lambda text, words: {word.lower() for word in words} <= set(re.findall(r"\w+", text.lower())),
    "no_commas": lambda text, _: "," not in text and bool(_words(text)),
}
"""Checks by instruction name, called with the text and the instruction's value; an empty text passes none."""


def _words(text: str) -> list[str]:
    """Return the runs between white space with at least one letter or digit."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def _is_point(line: str) -> bool:
    return line.strip().startswith(MARKS) and bool(_words(line))


def instructions_followed(
    completions: Sequence[Any], instructions: Sequence[Mapping[str, Any]], **_: Any
) -> list[float]:
    """Return the share of ``instructions`` (name → value, see ``CHECKS``) that each completion follows.

    Raises RewardError for an unknown instruction.
    """
    return [_share(text_of(c), wanted) for c, wanted in zip(completions, instructions, strict=True)]


def _share(text: str, wanted: Mapping[str, Any]) -> float:
    for name in wanted:
        if name not in CHECKS:
            raise RewardError(f"unknown instruction {name!r}.{suggest(name, CHECKS)} Known: {', '.join(CHECKS)}")
    # Data sets with one schema have every name in every row, with None for unused ones.
    asked = {name: value for name, value in wanted.items() if value is not None}
    if not asked or len(text) > LENGTH or not text.strip():
        return 0.0
    return sum(CHECKS[name](text, value) for name, value in asked.items()) / len(asked)


TOPICS = (
    "the sea", "a walk in the forest", "learning to cook", "old maps", "the moon", "a busy market", "trains",
    "winter mornings", "a small library", "bees", "repairing a bicycle", "mountains", "tea", "the history of paper",
    "lighthouses", "chess", "rivers", "gardening", "clocks", "volcanoes",
)  # fmt: skip
KEYWORDS = ("water", "light", "stone", "paper", "quiet", "morning", "colour", "journey", "simple", "winter", "number")
PHRASES = ("that is all", "thank you for reading", "and so it goes", "the end", "see you soon")
STARTS = ("in short", "to begin with", "once again", "first of all")
FILLER = ("some", "plain", "words", "about", "this", "fill", "what", "remains", "of", "it")
WORDING = {
    "bullets": "consists of exactly {} bullet points, each a line that begins with '- '",
    "lower_case": "is written in lower case only",
    "upper_case": "is written in CAPITAL LETTERS only",
    "ends_with": "ends with the words '{}' and nothing after them",
    "starts_with": "begins with the words '{}'",
    "word_count": "has exactly {} words",
    "keywords": "contains the words {}",
    "no_commas": "contains no comma",
}
"""The wording of each instruction in the prompt."""


class InstructionSettings(Sizes):
    """Settings of the generated instructions."""

    instructions: int = Field(default=3, ge=1, le=5)
    """Most instructions in a prompt."""


def instruction_format(settings: InstructionSettings) -> Task:
    """Create prompts with one or more instructions; the reward is the share of them that is followed."""
    return Task(
        "instruction_format",
        *splits("instruction_format", settings, partial(_row, settings.instructions), _identity),
        rewards=(Reward("followed", instructions_followed),),
        gold=_gold,
        full_marks=1.0,
    )


def _identity(row: DataRow) -> str:
    return str(row["prompt"])


def _row(most: int, draws: Draws) -> DataRow | None:
    names = draws.sample(tuple(WORDING), draws.between(1, most))
    if {"lower_case", "upper_case"} <= set(names):
        return None
    wanted = {name: _value(draws, name) for name in names}
    topic = draws.choice(TOPICS)
    asked = "\n".join(f"* {_worded(name, value)}" for name, value in wanted.items())
    return {"prompt": chat(f"Write a short text about {topic}. Your answer\n{asked}"), "instructions": wanted}


def _value(draws: Draws, name: str) -> Any:
    values = {
        "bullets": draws.between(2, 5),
        "ends_with": draws.choice(PHRASES),
        "starts_with": draws.choice(STARTS),
        "word_count": draws.between(20, 40),
        "keywords": draws.sample(KEYWORDS, draws.between(1, 3)),
    }
    return values.get(name, True)


def _worded(name: str, value: Any) -> str:
    return WORDING[name].format(" and ".join(value) if isinstance(value, list) else value)


def _gold(example: Example) -> str:
    """Build an answer that follows all instructions: keywords and filler between the required phrases."""
    wanted = example.columns["instructions"]
    start, end = wanted.get("starts_with", "").split(), wanted.get("ends_with", "").split()
    middle = list(wanted.get("keywords", []))
    length = wanted.get("word_count", 20) - len(start) - len(end)
    middle += [FILLER[place % len(FILLER)] for place in range(length - len(middle))]
    text = _lines([*start, *middle, *end], wanted.get("bullets", 0))
    return text.upper() if "upper_case" in wanted else text.lower()


def _lines(words: list[str], bullets: int) -> str:
    """Join the words to one line, or to bullet points with one word each except the first and the last."""
    if not bullets:
        return " ".join(words)
    # The first point holds the words at the start of the answer, the last those at its end.
    cut = len(words) // 2
    middle = [[word] for word in words[cut : cut + bullets - 2]]
    points = [words[:cut], *middle, words[cut + len(middle) :]]
    return "\n".join(f"- {' '.join(point)}" for point in points)


KIND = TaskKind(
    build=instruction_format,
    settings=InstructionSettings,
    what="instructions on the form of an answer",
    reward="share of the instructions followed",
    sizes=(2000, 200),
)
