"""Number guessing by bisection: the environment answers higher or lower."""

from __future__ import annotations

import re
from typing import Any

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
            return self._unless_over(f"between {self.low} and {self.high}")
        if guess < self.answer:
            self.least = max(self.least, guess + 1)
            return self._unless_over("higher")
        self.most = min(self.most, guess - 1)
        return self._unless_over("lower")

    def _unless_over(self, told: str) -> str | None:
        return told if self.left > 0 else None
