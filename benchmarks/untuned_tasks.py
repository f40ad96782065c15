"""The tasks of untuned.py: rewards, data, and budgets; the models of 1M weights are those of countdown.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]


# ------------------------------------------------------------------------------ rewards


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def brief(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """½ + ½·max(0, 1 − characters/100) if the gold answer is in the completion, else 0."""
    texts = [_text(c) for c in completions]
    return [
        0.5 + 0.5 * max(0.0, 1.0 - len(t) / 100.0) if a.lower() in t.lower() else 0.0
        for t, a in zip(texts, answer, strict=True)
    ]


def one_sentence(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for an answer that ends with its only full stop, question or exclamation mark."""
    texts = [_text(c).strip() for c in completions]
    return [float(t[-1:] in set(".!?") and sum(t.count(mark) for mark in ".!?") == 1) for t in texts]


def last_number(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 if the last number of the completion is the answer."""
    found = [re.findall(r"-?\d+", _text(c)) for c in completions]
    return [float(bool(numbers) and numbers[-1] == a) for numbers, a in zip(found, answer, strict=True)]


def yes_or_no(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 for the right one of yes and no as the only word, ½ if it is only the first."""
    made = []
    for completion, right in zip(completions, answer, strict=True):
        words = re.findall(r"[a-z]+", _text(completion).lower())
        made.append((1.0 if len(words) == 1 else 0.5) if words[:1] == [right] else 0.0)
    return made


# ------------------------------------------------------------------------------ data


class Rows(NamedTuple):
    """Rows to train on, rows that the run may hold out and look at, and fresh ones that only measure its models."""

    train: list[Row]
    test: list[Row]
    fresh: list[Row]


def questions() -> Rows:
    """The 32 and 96 questions of the task ``conciseness``; fresh ones are those of ``right_and_brief``."""
    rows, other = _rows("conciseness"), _rows("right_and_brief")
    return _without_known(Rows(*rows, [{"prompt": row["prompt"], "answer": row["answers"][0]} for row in _all(other)]))


def right_and_brief() -> Rows:
    """The questions of the task ``right_and_brief``, 96 held out; fresh ones are those of ``conciseness``."""
    (train, test), other = _rows("right_and_brief"), _rows("conciseness")
    fresh = [{"prompt": row["prompt"], "answers": [row["answer"]]} for row in _all(other)]
    return _without_known(Rows(train, test, fresh))._replace(test=test[:96])


def _rows(name: str) -> tuple[list[Row], list[Row]]:
    """The training and the held-out rows of a built-in task."""
    from seedtune.tasks import create

    task = create(name)
    train, test = ([{"prompt": e.prompt, **e.columns} for e in rows] for rows in (task.train, task.test))
    return train, test


def _all(rows: tuple[list[Row], list[Row]]) -> list[Row]:
    """Both, the held-out ones first."""
    return [*rows[1], *rows[0]]


def _without_known(rows: Rows) -> Rows:
    known = {str(row["prompt"]) for row in (*rows.train, *rows.test)}
    return rows._replace(fresh=[row for row in rows.fresh if str(row["prompt"]) not in known])


def builtin(name: str) -> Rows:
    """The rows of a built-in task; fresh ones are those after the first 96 that it holds out."""
    train, test = _rows(name)
    return Rows(train, test[:96], test[96:])


def reward_of(name: str) -> Callable[..., list[float]]:
    """The reward of a built-in task."""

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        from seedtune.tasks import create

        made: list[float] = create(name).rewards[0].function(completions=completions, **columns)
        return made

    return reward


def sums(train: int, test: int = 128, fresh: int = 256) -> Rows:
    """Additions of two numbers below 100."""
    draw = np.random.default_rng(5)
    pairs = draw.permutation(81 * 81)[: train + test + fresh]
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
        for a, b in (divmod(int(pair), 81) for pair in pairs)
        for a, b in [(a + 10, b + 10)]
    ]
    return Rows(rows[:train], rows[train : train + test], rows[train + test :])


def comparisons(train: int, test: int = 128, fresh: int = 256) -> Rows:
    """Is one number larger than another?"""
    draw = np.random.default_rng(6)
    rows = []
    while len(rows) < train + test + fresh:
        a, b = (int(n) for n in draw.integers(1, 1000, 2))
        if a != b:
            text = f"Is {a} larger than {b}? Answer with yes or no."
            rows.append({"prompt": [{"role": "user", "content": text}], "answer": "yes" if a > b else "no"})
    return Rows(rows[:train], rows[train : train + test], rows[train + test :])


def countdown(train: int, test: int = 256, fresh: int = 1024) -> Rows:
    """Puzzles of countdown.py."""
    import countdown as puzzles

    held = puzzles.puzzles(test + fresh, 101, test=True)
    return _without_known(Rows(puzzles.puzzles(train, 100), held[:test], held[test:]))


def solved(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The reward of countdown.py."""
    import countdown as puzzles

    return puzzles.solved([_text(c) for c in completions], **columns)


@dataclass(frozen=True)
class Job:
    """A model, data and a reward, with the budget of a run."""

    data: Callable[[], Rows]
    reward: Callable[..., list[float]]
    settings: Row
    generations: int
    sigmas: tuple[float, ...] = (0.0035, 0.007)
    ratios: tuple[float, ...] = (0.15, 0.4, 1.0)
    model: str = "smollm2-135m"
    seen: bool = field(default=True)


def _of(prompts: int, length: int, **more: Any) -> Row:
    return {"prompts_per_generation": prompts, "max_completion_length": length, **more}


TINY = (0.01, 0.02, 0.03)
"""σ of the models of 1M weights."""

TASKS: dict[str, Job] = {
    "brief": Job(questions, brief, _of(6, 40), 10),
    "sentence": Job(questions, one_sentence, _of(4, 24), 16),
    "right": Job(right_and_brief, reward_of("right_and_brief"), _of(8, 24), 8),
    "sums": Job(lambda: sums(200), last_number, _of(16, 24, temperature=1.0), 4),
    "compare": Job(lambda: comparisons(64), yes_or_no, _of(8, 12), 8),
    "puzzles": Job(lambda: countdown(2000), solved, _of(64, 10), 24, TINY, model="countdown-llama"),
    "few": Job(lambda: countdown(32), solved, _of(32, 10), 24, TINY, model="countdown-llama"),
    "hot": Job(lambda: countdown(500), solved, _of(16, 10, temperature=1.0), 40, TINY, model="countdown-gpt2"),
    "lines": Job(questions, brief, _of(4, 24, temperature=1.0), 16),
    "another": Job(lambda: countdown(1000), solved, _of(32, 10), 24, TINY, model="countdown-qwen2"),
    "sixteen": Job(lambda: sums(16), last_number, _of(16, 24), 4),
    "format": Job(lambda: builtin("instruction_format"), reward_of("instruction_format"), _of(8, 32), 8, seen=False),
    "third": Job(lambda: countdown(800), solved, _of(16, 10), 48, TINY, model="countdown-qwen3", seen=False),
    "choice": Job(lambda: builtin("multiple_choice"), reward_of("multiple_choice"), _of(16, 24), 4, seen=False),
}
MODELS = {f"countdown-{family}": family for family in ("llama", "gpt2", "qwen2", "qwen3")}
