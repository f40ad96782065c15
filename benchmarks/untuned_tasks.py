"""The tasks of untuned.py: rewards, data, and budgets; the models of 1M weights are those of countdown.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def questions() -> tuple[list[Row], list[Row]]:
    """The 32 and 96 questions of the task ``conciseness``."""
    from seedtune.tasks import create

    task = create("conciseness")
    return tuple([{"prompt": e.prompt, "answer": str(e.columns["answer"])} for e in s] for s in (task.train, task.test))


def sums(train: int, test: int = 128) -> tuple[list[Row], list[Row]]:
    """Additions of two numbers below 100."""
    draw = np.random.default_rng(5)
    pairs = draw.permutation(81 * 81)[: train + test]
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
        for a, b in (divmod(int(pair), 81) for pair in pairs)
        for a, b in [(a + 10, b + 10)]
    ]
    return rows[:train], rows[train:]


def comparisons(train: int, test: int = 128) -> tuple[list[Row], list[Row]]:
    """Is one number larger than another?"""
    draw = np.random.default_rng(6)
    rows = []
    while len(rows) < train + test:
        a, b = (int(n) for n in draw.integers(1, 1000, 2))
        if a != b:
            text = f"Is {a} larger than {b}? Answer with yes or no."
            rows.append({"prompt": [{"role": "user", "content": text}], "answer": "yes" if a > b else "no"})
    return rows[:train], rows[train:]


def countdown(train: int, test: int = 256) -> tuple[list[Row], list[Row]]:
    """Puzzles of countdown.py."""
    import countdown as puzzles

    return puzzles.puzzles(train, 100), puzzles.puzzles(test, 101, test=True)


def solved(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The reward of countdown.py."""
    import countdown as puzzles

    return puzzles.solved([_text(c) for c in completions], **columns)


@dataclass(frozen=True)
class Job:
    """A model, data and a reward, with the budget of a run."""

    data: Callable[[], tuple[list[Row], list[Row]]] | str
    reward: Callable[..., list[float]] | None
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
    "right": Job("right_and_brief", None, _of(8, 24), 8),
    "format": Job("instruction_format", None, _of(8, 32), 8),
    "sums": Job(lambda: sums(200), last_number, _of(16, 24, temperature=1.0), 4),
    "compare": Job(lambda: comparisons(64), yes_or_no, _of(8, 12), 8),
    "puzzles": Job(lambda: countdown(2000), solved, _of(64, 10), 24, TINY, model="countdown-llama"),
    "few": Job(lambda: countdown(32), solved, _of(32, 10), 24, TINY, model="countdown-llama"),
    "hot": Job(lambda: countdown(500), solved, _of(16, 10, temperature=1.0), 40, TINY, model="countdown-gpt2"),
    "lines": Job(questions, brief, _of(4, 24, temperature=1.0), 16, seen=False),
    "another": Job(lambda: countdown(1000), solved, _of(32, 10), 24, TINY, model="countdown-qwen2", seen=False),
    "sixteen": Job(lambda: sums(16), last_number, _of(16, 24), 4, seen=False),
}
MODELS = {f"countdown-{family}": family for family in ("llama", "gpt2", "qwen2")}
