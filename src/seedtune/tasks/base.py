"""A task: examples to train on, held-out examples, and the rewards that score completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from pydantic import Field

from seedtune.config.sections import Section
from seedtune.errors import RewardError
from seedtune.rewards.base import Reward
from seedtune.tasks.environments import EnvironmentFactory
from seedtune.types import Example


@dataclass(frozen=True, slots=True)
class Task:
    """Training and held-out examples, with the rewards that score their completions."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    rewards: tuple[Reward, ...]
    gold: Callable[[Example], str] | None = None
    """Returns a completion that deserves full marks, for ``seedtune validate``."""
    full_marks: float | None = None
    """The weighted sum of the rewards of a gold answer; None: unknown, then no answer counts as right, but still none
    may score more than a gold answer."""
    right_from: float | None = None
    """The smallest weighted sum of rewards of a right answer; None: full_marks."""
    graded: bool = False
    """Whether rewards grade how near an answer is; hardly any is perfect then, so accuracy is not shown."""
    no_marks: float = 0.0
    """The largest reward of an empty answer."""
    answer: Callable[[str], str] | None = None
    """Extracts the answer of a completion, for majority votes; an empty answer is no vote.  None: the whole text."""
    environment: EnvironmentFactory | None = None
    """Makes the environment of a conversation, a new one for each; None: single completions.  Of several by name, a
    row's column ``environment`` names its own."""
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Functions by name that the model may call in conversations, besides the methods of the environment."""
    test_sets: Mapping[str, range] = field(default_factory=dict)
    """Numbers (`Example.id`) of the held-out examples of each set, by its name, if there are several sets."""
    dropped: Mapping[int, Example] = field(default_factory=dict)
    """Training examples that were left out because the model cannot read them, by their places in the whole data."""

    @property
    def has_accuracy(self) -> bool:
        """Whether answers are right or wrong."""
        return self.full_marks is not None and not self.graded

    def answer_of(self, text: str) -> str:
        """Return the stripped answer of a completion; raise RewardError if the task's function raises."""
        if self.answer is None:
            return text.strip()
        try:
            return str(self.answer(text)).strip()
        except Exception as error:  # the named boundary: user code may raise anything
            raise RewardError(
                f"the answer function of task {self.name!r} raised {type(error).__name__}: {error}. Fix it, or return "
                "'' for completions without an answer."
            ) from error

    def digest(self) -> str:
        """Return 16 hexadecimal digits over the training examples.  Reward code is not included and may be fixed."""
        return _digest(self.train)

    def whole_digest(self) -> str:
        """Return the digest of the training examples with the dropped ones."""
        kept = iter(self.train)
        places = range(len(self.train) + len(self.dropped))
        return _digest([self.dropped[place] if place in self.dropped else next(kept) for place in places])


def _digest(examples: Sequence[Example]) -> str:
    rows = [[example.id, example.prompt, sorted(example.columns.items())] for example in examples]
    text = json.dumps(rows, default=_text, skipkeys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _text(value: Any) -> str:
    """Return a text that is the same in every process: of other objects only the name of their type is."""
    return str(value) if isinstance(value, date | time | timedelta | Decimal | bytes) else type(value).__name__


class NoSettings(Section):
    """Settings of a task without settings."""


class Sizes(Section):
    """Settings of a task with generated examples, which depend on ``seed`` only and are equal on every machine."""

    train_size: int = Field(default=2000, ge=1, le=1_000_000)
    """Training examples."""

    test_size: int = Field(default=200, ge=0, le=100_000)
    """Held-out examples, disjoint from the training examples."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the generated examples."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """The registry entry of a built-in task: its factory, and its description for the list of tasks."""

    build: Callable[[Any], Task]
    """Creates the task from an instance of ``settings``."""
    what: str
    reward: str
    """Description of the rewards."""
    sizes: tuple[int, int]
    """Training and held-out examples with the default settings."""
    settings: type[Section] = NoSettings
    needs: tuple[str, ...] = ()
    """Optional modules, installed by the extra ``tasks``, or ``data`` for data sets of the Hugging Face Hub."""
