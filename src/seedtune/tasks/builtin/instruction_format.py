"""Verifiable instructions on the format of an answer, in the style of IFEval (arXiv 2311.07911), combined here."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from pydantic import Field

from seedtune.errors import RewardError, nearest
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import examples
from seedtune.types import Example

LENGTH = 50_000
"""Longest answer in characters; a longer one scores 0."""
MARKS = "-*•"


def words_of(text: str) -> list[str]:
    """Return the words: runs between white space with at least one letter or digit."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def bullets(text: str, count: int) -> bool:
    """Whether exactly ``count`` lines begin with ``- ``, ``* `` or ``• `` and contain a word."""
    lines = [line.strip() for line in text.split("\n")]
    return sum(line[:1] in MARKS and line[1:2] == " " and bool(words_of(line[1:])) for line in lines if line) == count


def lower_case(text: str, _: object = None) -> bool:
    """Whether there is no upper-case letter, and at least one lower-case letter."""
    return text.islower()


def upper_case(text: str, _: object = None) -> bool:
    """Whether there is no lower-case letter, and at least one upper-case letter."""
    return text.isupper()


def ends_with(text: str, phrase: str) -> bool:
    """Whether the text ends with ``phrase``, ignoring case and trailing white space."""
    return text.rstrip().lower().endswith(phrase.lower())


def starts_with(text: str, phrase: str) -> bool:
    """Whether the text starts with ``phrase``, ignoring case, white space and bullet marks before it."""
    return text.lstrip(f" \t\n{MARKS}").lower().startswith(phrase.lower())


def word_count(text: str, count: int) -> bool:
    """Whether there are exactly ``count`` words."""
    return len(words_of(text)) == count


def keywords(text: str, wanted: Sequence[str]) -> bool:
    """Whether every keyword occurs as a whole word, ignoring case."""
    found = set(re.findall(r"\w+", text.lower()))
    return all(word.lower() in found for word in wanted)


def no_commas(text: str, _: object = None) -> bool:
    """Whether there is no comma, and at least one word."""
    return "," not in text and bool(words_of(text))


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "bullets": bullets,
    "lower_case": lower_case,
    "upper_case": upper_case,
    "ends_with": ends_with,
    "starts_with": starts_with,
    "word_count": word_count,
    "keywords": keywords,
    "no_commas": no_commas,
}
"""Checks by instruction name, called with the text and the instruction's value; an empty text passes none."""


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
            raise RewardError(f"unknown instruction {name!r}.{nearest(name, CHECKS)} Known: {', '.join(CHECKS)}")
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
SAID: dict[str, Callable[[Any], str]] = {
    "bullets": lambda count: f"consists of exactly {count} bullet points, each a line that begins with '- '",
    "lower_case": lambda _: "is written in lower case only",
    "upper_case": lambda _: "is written in CAPITAL LETTERS only",
    "ends_with": lambda phrase: f"ends with the words '{phrase}' and nothing after them",
    "starts_with": lambda phrase: f"begins with the words '{phrase}'",
    "word_count": lambda count: f"has exactly {count} words",
    "keywords": lambda words: f"contains the words {' and '.join(words)}",
    "no_commas": lambda _: "contains no comma",
}
"""The wording of each instruction in the prompt."""
CASES = ("lower_case", "upper_case")


class InstructionSettings(Sizes):
    """Settings of the generated instructions."""

    instructions: int = Field(default=3, ge=1, le=5)
    """Most instructions in a prompt."""


def instruction_format(settings: InstructionSettings) -> Task:
    """Create prompts with one or more instructions; the reward is the share of them that is followed."""

    def make(draws: Draws) -> tuple[Hashable, DataRow] | None:
        return _row(draws, settings.instructions)

    train, test = splits(make, settings, "instruction_format")
    return Task(
        name="instruction_format",
        train=examples(train, "train"),
        test=examples(test, "test"),
        rewards=(Reward("followed", instructions_followed),),
        gold=_gold,
        full_marks=1.0,
    )


def _row(draws: Draws, most: int) -> tuple[Hashable, DataRow] | None:
    names = draws.sample(tuple(SAID), draws.between(1, most))
    if set(CASES) <= set(names):
        return None
    wanted = {name: _value(draws, name) for name in names}
    topic = draws.choice(TOPICS)
    asked = "\n".join(f"* {SAID[name](value)}" for name, value in wanted.items())
    question = f"Write a short text about {topic}. Your answer\n{asked}"
    return question, {"prompt": [{"role": "user", "content": question}], "instructions": wanted}


def _value(draws: Draws, name: str) -> Any:
    values = {
        "bullets": draws.between(2, 5),
        "ends_with": draws.choice(PHRASES),
        "starts_with": draws.choice(STARTS),
        "word_count": draws.between(20, 40),
        "keywords": draws.sample(KEYWORDS, draws.between(1, 3)),
    }
    return values.get(name, True)


def _gold(example: Example) -> str:
    """Build an answer that follows all instructions: keywords and filler between the required phrases."""
    wanted = example.columns["instructions"]
    start, end = str(wanted.get("starts_with", "")).split(), str(wanted.get("ends_with", "")).split()
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
