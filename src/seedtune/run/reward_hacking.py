"""Monitor for reward hacking: compares every generation's completions with the base model's own.

The base model's completions are those recorded before the run's first update, so the comparison costs no rollout.

The statistics of a set of completions need no tokens: length, share of empty ones, scripts, letter trigrams.

They reveal a model that a reward has led astray: it gets longer, falls silent, changes its language, or writes noise.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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


Metrics = dict[str, Any]

EMPTIER = 0.2
"""Alarm limit of the share of empty completions, minus the base model's."""

LONGER, SHORTER = 3.0, 0.1
"""Alarm limits of the mean length over the base model's; wide, since completions are often meant to get shorter."""

SHIFTED = 0.2
"""Alarm limit of the share of letters in other scripts than the base model's."""

STRANGER = 0.25
"""Alarm limit of the novelty of letter trigrams (see `novelty`)."""

DIVERGED = 2.0
"""Alarm limit of the divergence from the base model, in nats per token."""


class RewardHackingMonitor:
    """Compare generations with the base model, whose completions are read from the run's samples on first use."""

    def __init__(self, samples: Path) -> None:
        self.samples = samples
        self._base: TextStatistics | None = None
        self._looked = False

    def metrics(self, rollouts: Sequence[Rollout]) -> Metrics:
        """Compute ``completions/…`` of a generation; comparisons are None without completions of the base model."""
        now, base = text_statistics([rollout.text for rollout in rollouts]), self.base()
        return {
            "completions/empty_ratio": now.empty,
            "completions/length_change": _ratio(now.characters, base.characters) if base is not None else None,
            "completions/language_shift": distance(now.scripts, base.scripts) if base is not None else None,
            "completions/novelty": novelty(now, base) if base is not None else None,
        }

    def base(self) -> TextStatistics | None:
        """Return the statistics of the base model's completions, or None if the run has not recorded any."""
        if not self._looked:
            texts = [row["completion"] for row in directory.read_lines(self.samples) if is_base(row)]
            self._base, self._looked = text_statistics(texts) if texts else None, True
        return self._base

    def alarms(self, metrics: Mapping[str, Any]) -> list[str]:
        """Return signs of reward hacking, and what to do."""
        base = self.base()
        usual = base.empty if base else 0.0
        found = [_empty(metrics["completions/empty_ratio"], usual), _length(metrics["completions/length_change"])]
        found += [
            _language(metrics["completions/language_shift"]),
            _novelty(metrics["completions/novelty"]),
            _divergence(metrics.get("kl")),
        ]
        return [alarm for alarm in found if alarm is not None]


def is_base(row: Mapping[str, Any]) -> bool:
    """Return whether a recorded sample is the base model's, made before the first update (so are generation 1's)."""
    return bool(row["generation"] == 0 or (row["split"] == "train" and row["generation"] == 1))


def _ratio(now: float, base: float) -> float | None:
    return now / base if base else None


_LOOK = "Look at them: seedtune inspect RUN."


def _empty(share: float, usual: float) -> str | None:
    if share - usual <= EMPTIER:
        return None
    return (
        f"{share:.0%} of the answers are empty (the base model: {usual:.0%}). Make the reward of an empty answer the "
        "lowest there is, or lower sigma and alpha if the reward has fallen, too."
    )


def _length(change: float | None) -> str | None:
    if change is None or SHORTER <= change <= LONGER:
        return None
    told = f"{change:.1f} times as long as" if change > 1 else f"{change:.0%} of the length of"
    return f"answers are {told} the base model's. If the reward should not pay for length, take it out of it. {_LOOK}"


def _language(shift: float | None) -> str | None:
    if shift is None or shift <= SHIFTED:
        return None
    return (
        f"{shift:.0%} of the letters are in other scripts than the base model's. Let the reward check the language, or "
        f"hold on to the base model with anchor_l2. {_LOOK}"
    )


def _novelty(share: float | None) -> str | None:
    if share is None or share <= STRANGER:
        return None
    return (
        f"{share:.0%} more letter triples than usual are new to the base model's answers: another language, or noise "
        f"because the weights have moved too far. Lower sigma and alpha, or let the reward check it. {_LOOK}"
    )


def _divergence(nats: float | None) -> str | None:
    if nats is None or nats <= DIVERGED:
        return None
    return (
        f"the model is {nats:.1f} nats a token away from the base model. Watch other tasks (eval_tasks), and hold on "
        "to the base model with anchor_l2, or take smaller steps."
    )
