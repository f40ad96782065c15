"""Objectives: select among a member's k samples of a prompt; the score is the mean reward of the selected samples.

Each is a pure function of the samples' answers and rewards (NaN: not scored) that returns the selected indices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

Objective = Callable[[Sequence[str], Sequence[float]], list[int]]

Likelihoods = Callable[[Sequence[Sequence[float]], int], tuple[int, float]]
"""(log-probabilities of each answer's tokens, index of the right answer) → (index of the chosen answer, score)."""


def select_all(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """Select every sample: the expected reward."""
    return list(range(len(rewards)))


def select_best(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """Select the first sample with the highest reward: max over k, which for rewards of 0 and 1 is pass@k."""
    scored = [index for index, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(scored, key=lambda index: rewards[index])] if scored else []


def select_majority(answers: Sequence[str], rewards: Sequence[float]) -> list[int]:
    """Select the samples with the most frequent answer, on ties the one that came first; empty answers do not vote.

    Selects all samples if none has an answer.  The task extracts the answer of a completion (`Task.answer_of`).
    """
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return list(range(len(answers)))
    winner = votes.most_common(1)[0][0]  # equal counts come in the order of their first sample
    return [index for index, answer in enumerate(answers) if answer == winner]


def logprob(answers: Sequence[Sequence[float]], right: int) -> tuple[int, float]:
    """Return (0, mean log-probability per token of the only answer)."""
    return 0, _mean(answers[0])


def choice_accuracy(answers: Sequence[Sequence[float]], right: int) -> tuple[int, float]:
    """Return (choice with the highest mean log-probability per token, 1 if it is the ``right`` one, else 0).

    The first choice on ties; the score is NaN if the mean of any choice is not finite.
    """
    means = [_mean(answer) for answer in answers]
    chosen = max(range(len(means)), key=lambda place: means[place])
    return chosen, math.nan if any(math.isnan(value) for value in means) else float(chosen == right)


def _mean(logprobs: Sequence[float]) -> float:
    """Return the mean, or NaN if it is not finite."""
    value = math.fsum(logprobs) / len(logprobs)
    return value if math.isfinite(value) else math.nan


LIKELIHOODS: dict[str, Likelihoods] = {"logprob": logprob, "choice_accuracy": choice_accuracy}
"""Likelihood objectives on reference answers by name; they generate nothing."""

OBJECTIVES: dict[str, Objective] = {
    "mean": select_all,
    "pass_at_k": select_best,
    "majority_at_k": select_majority,
    **dict.fromkeys(LIKELIHOODS, select_all),  # one value per prompt, equal to its mean
}
"""Objectives by their name in the configuration."""

VOTING = frozenset({"majority_at_k"})
"""Objectives that depend on the extracted answers."""
