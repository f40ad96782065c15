"""Simple facts, to be answered rightly and briefly (our own questions)."""

from __future__ import annotations

from seedtune.rewards.base import Reward
from seedtune.rewards.right_and_brief import RIGHT, right_and_brief
from seedtune.tasks.base import Kind, NoSettings, Task
from seedtune.tasks.data import examples, packaged_rows


def right_and_brief_task(_: NoSettings) -> Task:
    """178 training and 118 held-out questions; reward 0.4 to 1 for a right answer, at most 0.3 for a wrong one."""
    return Task(
        name="right_and_brief",
        train=examples(_rows("right_and_brief_train.jsonl"), "train"),
        test=examples(_rows("right_and_brief_test.jsonl"), "test"),
        rewards=(Reward("right_and_brief", right_and_brief),),
        gold=lambda example: str(example.columns["answers"][0]),
        full_marks=1.0,
        right_from=RIGHT,
    )


def _rows(file: str) -> list[dict[str, object]]:
    return [
        {"prompt": [{"role": "user", "content": row["question"]}], "answers": row["answers"]}
        for row in packaged_rows(file)
    ]


KIND = Kind(
    build=right_and_brief_task,
    settings=NoSettings,
    what="a right answer to a simple question, in a short sentence",
    reward="0.4 for a right answer, up to 1 for a brief one",
    sizes=(178, 118),
)
