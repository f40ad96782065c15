"""Validate a task: gold answers must get full marks, empty answers none, and wrong answers no more than gold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from seedtune.config.config import Config
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.rewards.base import content_of, total
from seedtune.rewards.execution.call import awaited, raised
from seedtune.rewards.execution.thread import TimedThread, is_hang
from seedtune.rewards.scorer import STUCK, Scorer
from seedtune.tasks.base import Task
from seedtune.tasks.environments import begun_with
from seedtune.types import Example

TOLERANCE = 1e-9
LUCK = 0.9
"""Share of deliberately wrong answers with full marks from which a reward counts as broken."""
COLUMNS = ("gold", "answer")
"""Columns used as gold answers if a task does not define them, in this order."""


@dataclass(frozen=True, slots=True)
class Check:
    """Weighted reward sums of one kind of answer over all items, NaN if not scored.

    ``note`` names failed rewards or environments; ``broken`` says what is wrong with the task.  Either may be empty.
    """

    values: list[float]
    least: float
    mean: float
    most: float
    unscored: int
    seconds: float
    note: str
    what: str = ""
    expected: str = ""
    full: int = 0
    broken: str = ""


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
    texts = list(zip(golden, _others(golden), map(_text, data), strict=True))
    with closing(Marking(task, config, data)) as marking:
        marks = marking.marks(golden)
        best = marks.values if task.full_marks is None else [task.full_marks] * len(data)
        checks = [_gold_check(task, golden, marks, lambda: marking.marks(golden))]
        checks.append(_empty_check(task, marking.marks([""] * len(data))))
        for what, mutate in MUTATIONS.items():
            checks.append(_wrong_check(what, marking.marks([mutate(*given) for given in texts]), best))
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


def _others(golden: Sequence[str]) -> list[str]:
    """Return for each item the gold answer of a following one that differs from its own, or "?" if none nearby does."""
    twice = [*golden, *golden]
    near = (twice[place + 1 : place + 50] for place in range(len(golden)))
    return [next((other for other in found if other != own), "?") for own, found in zip(golden, near, strict=True)]


def _text(example: Example) -> str:
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else "\n".join(map(content_of, prompt))


MUTATIONS: dict[str, Callable[[str, str, str], str]] = {
    "blanks": lambda gold, other, prompt: " \n\t ",
    "another item's gold": lambda gold, other, prompt: other,
    "the prompt again": lambda gold, other, prompt: prompt,
    "gold, cut in half": lambda gold, other, prompt: gold[: len(gold) // 2],
    "gold backwards": lambda gold, other, prompt: gold[::-1],
    "gold 20 times": lambda gold, other, prompt: (gold + "\n") * 20,
    "I do not know.": lambda gold, other, prompt: "I do not know.",
    "100,000 brackets": lambda gold, other, prompt: "(" * 100_000,
    "control characters": lambda gold, other, prompt: "\x00\x1b[2J\ud7ff🙂٣" + gold[:3],
}
"""Mutated answers by name: wrong, or right only by luck (another item's gold)."""
MAY_BE_RIGHT = ("gold 20 times", "gold backwards")
"""Mutations that a sound reward may give full marks: they contain the answer or have the right length."""


class Marking:
    """Score a task's examples as a run does, in worker processes with time-outs, but without a failure limit."""

    def __init__(self, task: Task, config: Config, data: Sequence[Example]) -> None:
        self.task, self.config, self.data = task, config, data
        self._scorer = Scorer(task.rewards, config.replace(max_reward_failure_rate=1.0))
        self.close = self._scorer.close

    def marks(self, texts: Sequence[str]) -> Check:
        """Score one answer per example; raise RewardError if a reward cannot be loaded or never returned a value."""
        begun, notes = time.perf_counter(), list[str]()
        environments = dict.fromkeys(range(len(texts))) if self.task.environment is None else self._played(texts, notes)
        with self._scorer.round(self.data, range(len(texts)), after=0) as scoring:
            for place, environment in environments.items():
                scoring.add(place, texts[place], environment)
            scores, failed = scoring.finish(), scoring.failed()
            first = {row["reward"]: row["error"] for row in reversed(scoring.failures())}
        notes += [f"the reward function {n!r} failed on {failed[n]}: it {error}" for n, error in first.items()]
        values = total(self.task.rewards, scores)
        known = [value for value in values if math.isfinite(value)]
        return Check(
            values,
            least=min(known, default=math.nan),
            mean=sum(known) / len(known) if known else math.nan,
            most=max(known, default=math.nan),
            unscored=len(values) - len(known),
            seconds=time.perf_counter() - begun,
            note="; ".join(notes),
        )

    def _played(self, texts: Sequence[str], notes: list[str]) -> dict[int, Any]:
        """Play each example's environment with a model that repeats its text in every turn.

        Returns the environments by index, without those that failed, and adds a note about those.
        Raises RewardError if too many environments hang, and DataError if an environment has tools.
        """
        played, faults = dict[int, Any](), list[BaseException]()
        with closing(TimedThread(self.config.reward_timeout)) as thread:
            for place, (example, text) in enumerate(zip(self.data, texts, strict=True)):
                play = thread.call(partial(_play, self.task, self.config, example, text))
                error = play.exception()
                if error is None:
                    played[place] = play.result()
                    continue
                faults.append(error)
                if isinstance(error, DataError):
                    raise error
                if sum(is_hang(fault) for fault in faults) == STUCK:
                    raise RewardError(
                        f"{STUCK} environments of task {self.task.name!r} hang: there was {error}. Mend the "
                        "environment, or raise reward_timeout if it is slow."
                    )
        if faults:
            notes.append(f"the environment failed on {len(faults)}: it {raised(faults[0])}")
        return played


def _play(task: Task, config: Config, example: Example, text: str) -> Any:
    assert task.environment is not None
    environment, _ = begun_with(task.environment, example)
    if getattr(environment, "step", None) is None:
        raise DataError(f"task {task.name!r} has an environment with tools, which a single text cannot play.")
    for _ in range(config.conversation.max_turns):
        if awaited(environment.step(text)) is None:
            break
    return environment


def _gold_check(task: Task, golden: Sequence[str], marks: Check, again: Callable[[], Check]) -> Check:
    """Check that all gold answers get full marks, and the same when they are scored ``again``."""
    full, values = task.full_marks, marks.values
    wrong = [place for place, value in enumerate(values) if not _is_full(value, full)]
    broken = ""
    if wrong:
        text, value = golden[wrong[0]][:80], values[wrong[0]]
        broken = f"{len(wrong)} of {len(golden)} gold answers got less, first {text!r}: {value:g}"
    elif again().values != values:
        broken = "scored twice, the same answers got different marks"
    expected = "any number" if full is None else f"{full:g}"
    return replace(marks, what="gold", expected=expected, full=len(golden) - len(wrong), broken=broken)


def _is_full(value: float, full: float | None) -> bool:
    return math.isfinite(value) and (full is None or abs(value - full) <= TOLERANCE)


def _empty_check(task: Task, marks: Check) -> Check:
    if task.full_marks is None:
        return replace(marks, what="empty", expected="not more than gold")
    high = [value for value in marks.values if value > task.no_marks + TOLERANCE]
    broken = f"{len(high)} of {len(marks.values)} got more, up to {max(high):g}" if high else ""
    return replace(marks, what="empty", expected=f"at most {task.no_marks:g}, or none", broken=broken)


def _wrong_check(what: str, marks: Check, best: Sequence[float]) -> Check:
    """Check mutated answers against ``best``, the full marks or the gold answers' rewards per item."""
    pairs = list(zip(marks.values, best, strict=True))
    above = sum(value > most + TOLERANCE for value, most in pairs)
    full = sum(math.isfinite(value) and value >= most - TOLERANCE for value, most in pairs)
    broken = ""
    if above:
        broken = f"{above} of {len(best)} got more than gold"
    elif what not in MAY_BE_RIGHT and full >= LUCK * len(best):
        broken = f"{full} of {len(best)} got full marks"
    return replace(marks, what=what, expected="less than gold", full=full, broken=broken)
