"""Monitor for reward hacking: compares every generation's completions with the base model's own.

The base model's completions are those recorded before the run's first update, so the comparison costs no rollout.
The statistics of a set of completions need no tokens: length, share of empty ones, scripts, letter trigrams.  They
reveal a model that a reward has led astray: it gets longer, falls silent, changes its language, or writes noise.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from seedtune.run import directory
from seedtune.types import Rollout

LONGEST, LOOKED_AT = 512, 128
"""Characters of a completion, and completions (evenly chosen), whose letters are examined: bounds the time."""

_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Mean characters, share of empty completions, shares of letters by script, and counts of letter trigrams."""

    characters: float
    empty: float
    scripts: Mapping[str, float]
    trigrams: Counter[str]
    lonely: float | None
    """Share of trigrams that only one completion has: the novelty of a completion of the same kind."""


def text_statistics(texts: Sequence[str]) -> TextStatistics:
    """Compute the statistics of ``texts``, at least one."""
    step = -(-len(texts) // LOOKED_AT)
    looked = [text[:LONGEST] for text in texts[::step]]
    every = [_trigrams(text) for text in looked]
    counts = Counter(t for one in every for t in one)
    holders = Counter(t for one in every for t in set(one))
    alone = sum(count for trigram, count in counts.items() if holders[trigram] == 1)
    return TextStatistics(
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
    """Total variation ½ Σ |p − q| between two histograms, in [0, 1]; None if one of them is empty."""
    if not one or not other:
        return None
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2


def novelty(now: TextStatistics, base: TextStatistics) -> float | None:
    """Share of letter trigrams absent from the base's completions, minus the usual novelty of one base completion.

    Σ_t n_t [t ∉ base] / Σ_t n_t − ``base.lonely``: about 0, below 0.2, for the same language; from 0.3 for another in
    the same script, from 0.45 for noise (measured with 8 to 96 completions of 40 to 300 characters as the base, for any
    length of those compared with it).  None if one of the two has no letters.
    """
    if not now.trigrams or base.lonely is None:
        return None
    new = sum(count for trigram, count in now.trigrams.items() if trigram not in base.trigrams)
    return new / now.trigrams.total() - base.lonely


class RewardHackingMonitor:
    """Compare generations with the base model, whose completions are read from the run's samples on first use."""

    def __init__(self, samples: Path) -> None:
        self.samples = samples

    def metrics(self, rollouts: Sequence[Rollout]) -> dict[str, float | None]:
        """Compute ``completions/…`` of a generation; comparisons are None without completions of the base model."""
        now, base = text_statistics([rollout.text for rollout in rollouts]), self.base
        return {
            "completions/empty_ratio": now.empty,
            "completions/length_change": now.characters / base.characters if base and base.characters else None,
            "completions/language_shift": distance(now.scripts, base.scripts) if base else None,
            "completions/novelty": novelty(now, base) if base else None,
        }

    @cached_property
    def base(self) -> TextStatistics | None:
        """The statistics of the base model's completions, or None if the run has not recorded any."""
        texts = [row["completion"] for row in directory.read_lines(self.samples) if is_base(row)]
        return text_statistics(texts) if texts else None

    @property
    def usual(self) -> dict[str, float]:
        """The base model's value of the metric that is not itself a comparison."""
        return {"completions/empty_ratio": self.base.empty} if self.base else {}


def is_base(row: Mapping[str, Any]) -> bool:
    """Return whether a recorded sample is the base model's, made before the first update (so are generation 1's)."""
    return bool(row["generation"] == 0 or (row["split"] == "train" and row["generation"] == 1))
