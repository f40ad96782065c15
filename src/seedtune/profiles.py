"""What a set of answers looks like, in numbers that need no tokens: length, silence, scripts, letters in a row.

They show a model that a reward has led astray: it gets longer, falls silent, changes its language, or writes noise.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

LONGEST, LOOKED_AT = 512, 128
"""Characters of an answer, and answers (evenly chosen), whose letters are looked at: bounds the time."""

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean characters, share of empty answers, shares of letters by script, and counts of three letters in a row."""

    characters: float
    empty: float
    scripts: Mapping[str, float]
    trigrams: Counter[str]
    lonely: float | None
    """Share of the trigrams that only one answer has: what is new in an answer of the same kind."""


def profile(texts: Sequence[str]) -> Profile:
    """The profile of ``texts``, at least one."""
    step = -(-len(texts) // LOOKED_AT)
    looked = [text[:LONGEST] for text in texts[::step]]
    every = [_trigrams(text) for text in looked]
    counts = Counter(t for one in every for t in one)
    holders = Counter(t for one in every for t in set(one))
    alone = sum(count for trigram, count in counts.items() if holders[trigram] == 1)
    return Profile(
        characters=sum(map(len, texts)) / len(texts),
        empty=sum(not text.strip() for text in texts) / len(texts),
        scripts=scripts(looked),
        trigrams=counts,
        lonely=alone / counts.total() if counts else None,
    )


def _trigrams(text: str) -> list[str]:
    return [word[i : i + 3] for word in _WORD.findall(text.casefold()) for i in range(len(word) - 2)]


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Shares of letters by the first word of their Unicode names: LATIN, CYRILLIC, CJK, ARABIC, …  Sums to 1, or {}."""
    counts: Counter[str] = Counter()
    for letter, count in Counter("".join(texts)).items():
        if letter.isalpha():
            counts[_script(letter)] += count
    total = counts.total()
    return {name: count / total for name, count in sorted(counts.items())}


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").split(" ")[0]


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Total variation ½ Σ |p − q| between two histograms, 0 … 1; None where one of them is empty."""
    if not one or not other:
        return None
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2


def novelty(now: Profile, base: Profile) -> float | None:
    """Share of trigrams of letters that the base's answers never have, less what one of these has that the others lack.

    Σ_t n_t [t ∉ base] / Σ_t n_t − ``base.lonely``: about 0, below 0.2, for the same language; from 0.3 for another in
    the same script, from 0.45 for noise (measured with 8 to 96 answers of 40 to 300 characters as the base, however
    long those compared with it).  None where one of the two has no letters.
    """
    if not now.trigrams or base.lonely is None:
        return None
    new = sum(count for trigram, count in now.trigrams.items() if trigram not in base.trigrams)
    return new / now.trigrams.total() - base.lonely
