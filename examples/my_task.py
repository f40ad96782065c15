"""A task of your own: copy this file, change the rows and the reward, and look at it first.

seedtune validate examples/my_task.py:my_task
seedtune train CONFIG.yaml --set task=examples/my_task.py:my_task --set task_args.size=400
"""

from seedtune.rewards.base import text_of
from seedtune.tasks import Reward, Task, examples


def exact(completions, answer, **columns):
    """1 if a completion is the answer and nothing else, else 0."""
    return [float(text_of(c).strip() == right) for c, right in zip(completions, answer, strict=True)]


def my_task(size: int = 200) -> Task:
    """Words to repeat in capital letters."""
    words = [f"word {chr(97 + i % 26)}{i}" for i in range(size)]
    rows = [{"prompt": [{"role": "user", "content": f"Capitals: {w}"}], "answer": w.upper()} for w in words]
    return Task(
        name="my_task",
        train=examples(rows[size // 4 :], "train"),
        test=examples(rows[: size // 4], "test"),
        rewards=(Reward("exact", exact),),
        gold=lambda example: example.columns["answer"],  # for `seedtune validate`
        full_marks=1.0,
    )
