"""Number guessing: a conversation of a few turns for chat models."""

from __future__ import annotations

from seedtune.rewards.base import Reward
from seedtune.tasks.base import NoSettings, Task, TaskKind
from seedtune.tasks.data.rows import chat, examples
from seedtune.tasks.environments.base import environment_reward
from seedtune.tasks.environments.guessing import NumberGuessing

_ASKED = (
    "I am thinking of a whole number from {low} to {high}. Guess it: answer with one number and nothing else. "
    "I will say whether my number is higher or lower."
)
SPAN, GUESSES = 15, 4
"""Numbers in a range, and the guesses allowed, as many as bisection needs."""


def number_guessing(_: NoSettings) -> Task:
    """Create the task: 144 training numbers in 36 ranges of 15, and 60 held-out numbers in four other ranges.

    The reward is 1 for a number found within the guesses, else 0.
    """
    train = [_row(1 + 5 * (index // 4), index * 7 % SPAN) for index in range(144)]
    test = [_row(3 + 20 * part, place) for part in range(4) for place in range(SPAN)]
    return Task(
        name="number_guessing",
        train=examples(train, "train"),
        test=examples(test, "test"),
        rewards=(Reward("found", environment_reward),),
        gold=lambda example: str(example.columns["answer"]),
        full_marks=1.0,
        environment=NumberGuessing,
    )


def _row(low: int, place: int) -> dict[str, object]:
    high = low + SPAN - 1
    prompt = chat(_ASKED.format(low=low, high=high))
    return {"prompt": prompt, "low": low, "high": high, "answer": low + place, "guesses": GUESSES}


KIND = TaskKind(
    build=number_guessing,
    what="guess a number in a conversation that says higher or lower",
    reward="1 for a number found within the guesses",
    sizes=(144, 60),
)
