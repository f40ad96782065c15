"""Conciseness: as few characters as the ideal answer has (arXiv 2509.24372, our own questions)."""

from __future__ import annotations

from seedtune.rewards.length import length_error
from seedtune.tasks.base import Reward, Task
from seedtune.tasks.data import examples, packaged_rows


def conciseness() -> Task:
    """32 training and 96 held-out questions; reward −|len(answer) − len(target)| in characters."""
    return Task(
        name="conciseness",
        train=examples(_rows("conciseness_train.jsonl"), "train"),
        test=examples(_rows("conciseness_test.jsonl"), "test"),
        rewards=(Reward("length_error", length_error),),
    )


def _rows(file: str) -> list[dict[str, object]]:
    return [
        {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
        for row in packaged_rows(file)
    ]
