"""What counts of a member's k samples of a prompt: its score is the mean reward of the samples chosen here.

Pure functions of the samples' texts and rewards (NaN: could not be scored) that give places among them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

Objective = Callable[[Sequence[str], Sequence[float]], list[int]]


def mean(texts: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """Every sample: the expected reward."""
    return list(range(len(rewards)))


def pass_at_k(texts: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """The best sample, the first of several: max over k of the reward, which for 0 and 1 is pass@k."""
    scored = [index for index, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(scored, key=lambda index: rewards[index])] if scored else []


def majority_at_k(texts: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """The samples of the most frequent text, outer white space aside; of several the one that came first.

    Texts are compared whole, so this is for answers without reasoning around them.
    """
    answers = [text.strip() for text in texts]
    winner = Counter(answers).most_common(1)[0][0]  # equal counts come in the order of their first sample
    return [index for index, answer in enumerate(answers) if answer == winner]


OBJECTIVES: dict[str, Objective] = {"mean": mean, "pass_at_k": pass_at_k, "majority_at_k": majority_at_k}
"""Every objective by its name in the configuration."""
