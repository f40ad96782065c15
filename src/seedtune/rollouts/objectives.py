"""What counts of a member's k samples of a prompt: its score is the mean reward of the samples chosen here.

Pure functions of the samples' answers and rewards (NaN: could not be scored) that give places among them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

Objective = Callable[[Sequence[str], Sequence[float]], list[int]]

Likelihoods = Callable[[Sequence[Sequence[float]], int], tuple[int, float]]
"""(log-probabilities of each answer's tokens, position of the right one) → (answer that counts, score)."""


def mean(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """Every sample: the expected reward."""
    return list(range(len(rewards)))


def pass_at_k(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """The best sample, the first of several: max over k of the reward, which for 0 and 1 is pass@k."""
    scored = [index for index, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(scored, key=lambda index: rewards[index])] if scored else []


def majority_at_k(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """The samples of the most frequent answer, of several the one that came first; an empty answer is no vote.

    All samples where none has an answer.  What of a completion is its answer, the task says (`Task.answer_of`).
    """
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return list(range(len(answers)))
    winner = votes.most_common(1)[0][0]  # equal counts come in the order of their first sample
    return [index for index, answer in enumerate(answers) if answer == winner]


def logprob(answers: Sequence[Sequence[float]], right: int) -> tuple[int, float]:
    """(0, mean log-probability of a token of the one answer)."""
    return 0, _mean(answers[0])


def choice_accuracy(answers: Sequence[Sequence[float]], right: int) -> tuple[int, float]:
    """(choice with the highest mean log-probability of a token, 1 if it is the ``right`` one, else 0).

    Of equal ones the first; NaN if one of them is NaN.
    """
    means = [_mean(answer) for answer in answers]
    chosen = max(range(len(means)), key=lambda place: means[place])
    return chosen, math.nan if any(math.isnan(value) for value in means) else float(chosen == right)


def _mean(logprobs: Sequence[float]) -> float:
    """The mean; NaN for what is no finite number."""
    value = sum(logprobs) / len(logprobs)
    return value if math.isfinite(value) else math.nan


LIKELIHOODS: dict[str, Likelihoods] = {"logprob": logprob, "choice_accuracy": choice_accuracy}
"""Objectives on reference answers, by name; nothing is generated."""

OBJECTIVES: dict[str, Objective] = {
    "mean": mean,
    "pass_at_k": pass_at_k,
    "majority_at_k": majority_at_k,
    **dict.fromkeys(LIKELIHOODS, mean),  # one value a prompt, which is its own mean
}
"""Every objective by its name in the configuration."""

VOTING = frozenset({"majority_at_k"})
"""Objectives that look at answers."""
