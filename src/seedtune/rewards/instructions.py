"""Instructions on the form of an answer that a few lines of code can verify."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seedtune.errors import RewardError, nearest
from seedtune.rewards.completions import text_of

LENGTH = 50_000
"""Characters of an answer; a longer one follows nothing."""
MARKS = "-*•"


def words_of(text: str) -> list[str]:
    """Words: what stands between blanks and has a letter or digit."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def bullets(text: str, count: int) -> bool:
    """Exactly ``count`` lines begin with ``- ``, ``* `` or ``• `` and say something."""
    lines = [line.strip() for line in text.split("\n")]
    return sum(line[:1] in MARKS and line[1:2] == " " and bool(words_of(line[1:])) for line in lines if line) == count


def lower_case(text: str, _: object = None) -> bool:
    """No capital letter, and some small one."""
    return text.islower()


def upper_case(text: str, _: object = None) -> bool:
    """No small letter, and some capital one."""
    return text.isupper()


def ends_with(text: str, phrase: str) -> bool:
    """The last words are the ``phrase``; blanks after it do not count."""
    return text.rstrip().lower().endswith(phrase.lower())


def starts_with(text: str, phrase: str) -> bool:
    """The first words are the ``phrase``, after a bullet's mark if there is one."""
    return text.lstrip(f" \t\n{MARKS}").lower().startswith(phrase.lower())


def word_count(text: str, count: int) -> bool:
    """Exactly ``count`` words."""
    return len(words_of(text)) == count


def keywords(text: str, wanted: Sequence[str]) -> bool:
    """Every keyword is there as a word of its own, in any case."""
    found = set(re.findall(r"\w+", text.lower()))
    return all(word.lower() in found for word in wanted)


def no_commas(text: str, _: object = None) -> bool:
    """No comma, and some word."""
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
"""Every instruction by name; each takes the text and its value, and an empty text follows none."""


def instructions_followed(
    completions: Sequence[Any], instructions: Sequence[Mapping[str, Any]], **_: Any
) -> list[float]:
    """Share of the ``instructions`` (name → value, see ``CHECKS``) that a completion follows.

    RewardError names an instruction that there is not.
    """
    return [_share(text_of(c), wanted) for c, wanted in zip(completions, instructions, strict=True)]


def _share(text: str, wanted: Mapping[str, Any]) -> float:
    for name in wanted:
        if name not in CHECKS:
            raise RewardError(f"unknown instruction {name!r}.{nearest(name, CHECKS)} Known: {', '.join(CHECKS)}")
    # Data sets of one schema give every row every name, with None where it is not meant.
    asked = {name: value for name, value in wanted.items() if value is not None}
    if not asked or len(text) > LENGTH or not text.strip():
        return 0.0
    return sum(CHECKS[name](text, value) for name, value in asked.items()) / len(asked)
