"""Number guessing: a conversation of a few turns for chat models.  For example::

    I am thinking of a whole number from 1 to 15. Guess it: answer with one number and nothing else. …
    8
    higher
    12

The number is 12, found within four guesses: the reward is 1.
"""

from __future__ import annotations

import re
from typing import Any

from seedtune.rewards.base import Reward
from seedtune.tasks.base import NoSettings, Task, TaskKind
from seedtune.tasks.data.rows import chat, examples
from seedtune.tasks.environments import environment_reward

QUESTION = (
    "I am thinking of a whole number from {low} to {high}. Guess it: answer with one number and nothing else. "
    "I will say whether my number is higher or lower."
)
SPAN, GUESSES = 15, 4
"""Numbers in a range, and the guesses allowed, as many as bisection needs."""
_NUMBER = re.compile(r"-?\d{1,9}")


class NumberGuessing:
    """Let the model find ``answer`` in [``low``, ``high``]; the first number in a message is the guess.

    ``guesses`` are allowed (by default as many as bisection needs).  ``reward`` is 1 if the number was found, else 0;
    ``least`` and ``most`` are the bounds known from the replies so far, for finer rewards.
    """

    def reset(self, *, low: int, high: int, answer: int, guesses: int | None = None, **_: Any) -> None:
        """Start a game with the row's number, whose range the prompt states; raise ValueError if it is out of range."""
        if not low <= answer <= high:
            raise ValueError(f"answer={answer} must lie between low={low} and high={high}")
        self.low, self.high, self.answer = low, high, answer
        self.least, self.most = low, high
        self.left = (high - low + 1).bit_length() if guesses is None else guesses
        self.reward = 0.0

    def step(self, text: str) -> str | None:
        """Reply ``higher``, ``lower`` or the valid range; None when the number is found or no guess is left."""
        found = _NUMBER.search(text)
        guess = int(found[0]) if found else None
        self.left -= 1
        if guess == self.answer:
            self.reward, self.least, self.most = 1.0, guess, guess
            return None
        if guess is None or not self.low <= guess <= self.high:
            reply = f"between {self.low} and {self.high}"
        elif guess < self.answer:
            self.least, reply = max(self.least, guess + 1), "higher"
        else:
            self.most, reply = min(self.most, guess - 1), "lower"
        return reply if self.left > 0 else None


def number_guessing(_: NoSettings) -> Task:
    """Create the task: 144 training numbers in 36 ranges of 15, and 60 held-out numbers in four other ranges.

    The reward is 1 for a number found within the guesses, else 0.
    """
    train = [_row(1 + 5 * (index // 4), index * 7 % SPAN) for index in range(144)]
    test = [_row(3 + 20 * part, place) for part in range(4) for place in range(SPAN)]
    return Task(
        "number_guessing",
        examples(train, "train"),
        examples(test, "test"),
        rewards=(Reward("found", environment_reward),),
        gold=lambda example: str(example.columns["answer"]),
        full_marks=1.0,
        environment=NumberGuessing,
    )


def _row(low: int, place: int) -> dict[str, Any]:
    high = low + SPAN - 1
    prompt = chat(QUESTION.format(low=low, high=high))
    return {"prompt": prompt, "low": low, "high": high, "answer": low + place, "guesses": GUESSES}


KIND = TaskKind(
    build=number_guessing,
    what="guess a number in a conversation that says higher or lower",
    reward="1 for a number found within the guesses",
    sizes=(144, 60),
)
