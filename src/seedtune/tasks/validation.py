"""Validate a task: gold answers must get full marks, empty answers none, and wrong answers no more than gold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from seedtune.config.config import Config
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.rewards.base import total
from seedtune.rewards.execution.call import accepted, raised
from seedtune.rewards.execution.thread import TimedThread, is_hang
from seedtune.rewards.scorer import STUCK, Scorer
from seedtune.tasks.base import Task
from seedtune.types import Example

TOLERANCE = 1e-9
LUCK = 0.9
"""Share of deliberately wrong answers with full marks from which a reward counts as broken."""
COLUMNS = ("gold", "answer")
"""Columns used as gold answers if a task does not define them, in this order."""


@dataclass(frozen=True, slots=True)
class Check:
    """Scores of one kind of answer over all items; ``broken`` says what is wrong, or is empty."""

    what: str
    expected: str
    items: int
    least: float
    mean: float
    most: float
    unscored: int
    full: int
    seconds: float
    broken: str
    note: str = ""
    """Failed rewards or environments; the affected answers have no value."""


def validate(task: Task, *, items: int = 400, gold: str | None = None, config: Config | None = None) -> list[Check]:
    """Score gold, empty and mutated answers on up to ``items`` examples of both splits (held-out ones first).

    Gold answers come from the task, or from the column named by ``gold``; ``config`` sets time-outs and workers.
    Raises DataError if there are no gold answers or examples, and ConfigError for likelihood objectives.
    """
    config = config or Config()
    if config.uses_likelihood:
        raise ConfigError(
            f"objective={config.objective!r} measures how probable reference answers are: there is no reward to "
            "validate. Validate tasks whose completions are scored."
        )
    data = [*task.test, *task.train][:items]
    if not data:
        raise DataError(f"task {task.name!r} has no examples to validate.")
    golden = _golden(task, data, gold)
    with Marking(task, config, data) as marking:
        first, values = _gold_check(task, marking, golden)
        best = values if task.full_marks is None else [task.full_marks] * len(data)
        checks = [first, _empty_check(task, marking.marks([""] * len(data)))]
        for what, mutate in MUTATIONS.items():
            marks = marking.marks([mutate(index, golden, data) for index in range(len(data))])
            checks.append(_wrong_check(what, marks, best))
    return checks


def _golden(task: Task, data: Sequence[Example], column: str | None) -> list[str]:
    if task.gold is not None and column is None:
        return [task.gold(example) for example in data]
    names = COLUMNS if column is None else (column,)
    found = next((name for name in names if all(name in example.columns for example in data)), None)
    if found is None:
        held = sorted({name for example in data for name in example.columns})
        raise DataError(
            f"task {task.name!r} has no gold answers: its columns are {held}. Add a column 'gold' with a completion "
            "that deserves full marks, name it with --gold COLUMN, or give Task(gold=function)."
        )
    return [str(example.columns[found]) for example in data]


def _swapped(index: int, golden: Sequence[str], _: Sequence[Example]) -> str:
    """Return the gold answer of a following item that differs from this item's, or "?" if none nearby does."""
    near = (golden[(index + step) % len(golden)] for step in range(1, min(50, len(golden))))
    return next((other for other in near if other != golden[index]), "?")


def _echoed(index: int, _: Sequence[str], data: Sequence[Example]) -> str:
    prompt = data[index].prompt
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


MUTATIONS: dict[str, Callable[[int, Sequence[str], Sequence[Example]], str]] = {
    "blanks": lambda *_: " \n\t ",
    "another item's gold": _swapped,
    "the prompt again": _echoed,
    "gold, cut in half": lambda index, golden, _: golden[index][: len(golden[index]) // 2],
    "gold backwards": lambda index, golden, _: golden[index][::-1],
    "gold 20 times": lambda index, golden, _: (golden[index] + "\n") * 20,
    "I do not know.": lambda *_: "I do not know.",
    "100,000 brackets": lambda *_: "(" * 100_000,
    "control characters": lambda index, golden, _: "\x00\x1b[2J\ud7ff🙂٣" + golden[index][:3],
}
"""Mutated answers by name: wrong, or right only by luck (another item's gold)."""
MAY_BE_RIGHT = ("gold 20 times", "gold backwards")
"""Mutations that a sound reward may give full marks: they contain the answer or have the right length."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Weighted reward sums of answers, NaN if not scored; ``note`` describes failures, or is empty."""

    values: list[float]
    seconds: float
    note: str


class Marking:
    """Score a task's examples as a run does, in worker processes with time-outs, but without a failure limit."""

    def __init__(self, task: Task, config: Config, data: Sequence[Example]) -> None:
        self.task, self.config, self.data = task, config, data
        rewards, config = task.rewards, config.replace(max_reward_failure_rate=1.0)
        if task.environment is not None:
            # Environments cannot be sent to worker processes; rewards with a source run in a thread with a time-out.
            rewards = tuple(replace(reward, source=reward.source or reward.name) for reward in rewards)
            config = config.replace(reward_workers=0)
        self._scorer = Scorer(rewards, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()

    def marks(self, texts: Sequence[str]) -> Marks:
        """Score one answer per example; raise RewardError if a reward cannot be loaded or never returned a value."""
        begun = time.perf_counter()
        data, notes = (list(self.data), []) if self.task.environment is None else self._played(texts)
        places = [place for place, example in enumerate(data) if example is not None]
        asked = [example for example in data if example is not None]
        with self._scorer.round(asked, range(len(asked)), after=0) as scoring:
            for index, place in enumerate(places):
                scoring.add(index, texts[place])
            scores, failed = scoring.finish(), scoring.failed()
            notes += [_note(row, failed) for row in _firsts(scoring.failures())]
        values = [math.nan] * len(data)
        for place, value in zip(places, total(self.task.rewards, scores), strict=True):
            values[place] = value
        return Marks(values, time.perf_counter() - begun, "; ".join(notes))

    def _played(self, texts: Sequence[str]) -> tuple[list[Example | None], list[str]]:
        """Play each example's environment with a model that repeats its text in every turn.

        Returns the examples with their environments, None where an environment failed, and a note about failures.
        Raises RewardError if too many environments hang, and DataError if an environment has tools.
        """
        played, faults = list[Example | None](), list[BaseException]()
        with closing(TimedThread(self.config.reward_timeout)) as thread:
            for example, text in zip(self.data, texts, strict=True):
                play = thread.call(partial(_play, self.task, self.config, example, text))
                error = play.exception()
                if error is None:
                    columns = {**example.columns, "environments": play.result()}
                    played.append(replace(example, columns=columns))
                    continue
                played.append(None)
                faults.append(error)
                if isinstance(error, DataError):
                    raise error
                if sum(is_hang(fault) for fault in faults) == STUCK:
                    raise RewardError(
                        f"{STUCK} environments of task {self.task.name!r} hang: there was {error}. Mend the "
                        "environment, or raise reward_timeout if it is slow."
                    )
        return played, [f"the environment failed on {len(faults)}: it {raised(faults[0])}"] if faults else []


def _firsts(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first failure of each reward."""
    return list({row["reward"]: row for row in reversed(rows)}.values())


def _note(row: Mapping[str, Any], failed: Mapping[str, int]) -> str:
    name = row["reward"]
    return f"the reward function {name!r} failed on {failed[name]}: it {row['error']}"


def _play(task: Task, config: Config, example: Example, text: str) -> Any:
    assert task.environment is not None
    environment = task.environment()
    environment.reset(**accepted(environment.reset, {"prompt": example.prompt, **example.columns}))
    if getattr(environment, "step", None) is None:
        raise DataError(f"task {task.name!r} has an environment with tools, which a single text cannot play.")
    turns = range(config.conversation.max_turns)
    next((turn for turn in turns if environment.step(text) is None), None)
    return environment


def _gold_check(task: Task, marking: Marking, golden: Sequence[str]) -> tuple[Check, list[float]]:
    """Return the check of the gold answers, and the weighted reward of each."""
    marks, full = marking.marks(golden), task.full_marks
    values, count = marks.values, len(golden)
    wrong = [place for place, value in enumerate(values) if not _is_full(value, full)]
    broken = ""
    if wrong:
        first = wrong[0]
        broken = f"{len(wrong)} of {count} gold answers got less, first {golden[first][:80]!r}: {values[first]:g}"
    elif marking.marks(golden).values != values:
        broken = "scored twice, the same answers got different marks"
    expected = "any number" if full is None else f"{full:g}"
    return _check(("gold", expected), marks, _reached(values, full), broken), values


def _is_full(value: float, full: float | None) -> bool:
    return math.isfinite(value) and (full is None or abs(value - full) <= TOLERANCE)


def _reached(values: Sequence[float], full: float | None) -> int:
    return sum(_is_full(value, full) for value in values)


def _empty_check(task: Task, marks: Marks) -> Check:
    count = len(marks.values)
    high = [value for value in marks.values if value > task.no_marks + TOLERANCE]
    broken = f"{len(high)} of {count} got more, up to {max(high):g}" if high and task.full_marks is not None else ""
    expected = "not more than gold" if task.full_marks is None else f"at most {task.no_marks:g}, or none"
    return _check(("empty", expected), marks, 0, broken)


def _wrong_check(what: str, marks: Marks, best: Sequence[float]) -> Check:
    """Check mutated answers against ``best``, the full marks or the gold answers' rewards per item."""
    pairs = list(zip(marks.values, best, strict=True))
    above = sum(value > most + TOLERANCE for value, most in pairs)
    full = sum(math.isfinite(value) and value >= most - TOLERANCE for value, most in pairs)
    broken = ""
    if above:
        broken = f"{above} of {len(best)} got more than gold"
    elif what not in MAY_BE_RIGHT and full >= LUCK * len(best):
        broken = f"{full} of {len(best)} got full marks"
    return _check((what, "less than gold"), marks, full, broken)


def _check(named: tuple[str, str], marks: Marks, full: int, broken: str) -> Check:
    values = marks.values
    known = [value for value in values if math.isfinite(value)] or [math.nan]
    mean = sum(known) / len(known)
    unscored = sum(not math.isfinite(value) for value in values)
    return Check(*named, len(values), min(known), mean, max(known), unscored, full, marks.seconds, broken, marks.note)
