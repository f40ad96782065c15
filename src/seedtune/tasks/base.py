"""A task: examples to train on, held-out examples, and the rewards that score completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from seedtune.config.sections import Section
from seedtune.errors import RewardError
from seedtune.rewards.base import Reward
from seedtune.tasks.environments.base import EnvironmentFactory
from seedtune.types import Example


@dataclass(frozen=True, slots=True)
class Task:
    """Data and rewards, ready to be drawn from and scored."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    rewards: tuple[Reward, ...]
    gold: Callable[[Example], str] | None = None
    """A completion that deserves full marks, for ``seedtune validate``."""
    full_marks: float | None = None
    """The weighted sum of the rewards of a gold answer; None: not known, but nothing may get more than a gold answer
    does, and no answer counts as right."""
    right_from: float | None = None
    """The weighted sum of rewards from which an answer counts as right; None: full_marks."""
    graded: bool = False
    """Rewards say how near an answer is, and hardly any is perfect: accuracy says nothing and is not shown."""
    no_marks: float = 0.0
    """The most that an empty answer may get."""
    answer: Callable[[str], str] | None = None
    """What of a completion is its answer, for votes among samples; empty: it gives none.  None: the whole text."""
    environment: EnvironmentFactory | None = None
    """What members talk to, a new one for each conversation; None: a prompt has one answer."""

    @property
    def has_accuracy(self) -> bool:
        """Whether answers are right or wrong."""
        return self.full_marks is not None and not self.graded

    def answer_of(self, text: str) -> str:
        """The answer in a completion, without outer white space; RewardError if the task's function raises."""
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
        """16 hexadecimal digits over the training examples.  Reward code has no digest: mending it is allowed."""
        rows = [[example.id, example.prompt, sorted(example.columns.items())] for example in self.train]
        text = json.dumps(rows, default=lambda value: type(value).__name__)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class NoSettings(Section):
    """Settings of a task that has none."""


class Sizes(Section):
    """Settings of a task that makes its own examples; all are addressed by ``seed``, equal on every machine."""

    train_size: int = Field(default=2000, ge=1, le=1_000_000)
    """Training examples."""

    test_size: int = Field(default=200, ge=0, le=100_000)
    """Held-out examples; none of them is a training example."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Another seed, other examples."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A built-in task as the registry has it: how it is made, and what a list of tasks says about it."""

    build: Callable[[Any], Task]
    """Makes the task of its ``settings``."""
    settings: type[Section]
    what: str
    reward: str
    """The rewards in words."""
    sizes: tuple[int, int]
    """Training and held-out examples with the default settings."""
    needs: tuple[str, ...] = ()
    """Modules to install, by the extra ``tasks``, or ``data`` for data sets of a hub."""
