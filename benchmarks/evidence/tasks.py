"""The tasks of the study: a model, data, a reward, and a budget of rollouts that every method may spend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import countdown
from benchmarks.evidence import puzzles

Row = dict[str, Any]
Reward = Callable[..., list[float]]

MODELS = Path(__file__).parents[1] / "results" / "evidence" / "models"
"""The small models: trained once by puzzles.py, and published, so that every run can be verified."""

SMALL = ("llama", "gpt2", "qwen2", "qwen3")
CHAINS = "llama-chains"
SMOLLM2 = "smollm2-135m"


class Rows(NamedTuple):
    """Rows to train and to tune on, and held-out ones that only measure."""

    train: list[Row]
    held_out: list[Row]


@dataclass(frozen=True)
class Task:
    """What is trained and how it is measured."""

    data: Callable[[], Rows]
    reward: Reward
    length: int
    """Most tokens of a completion."""

    rollouts: int
    prompts: int
    """Prompts a generation of ES."""

    models: tuple[str, ...] = SMALL
    sigmas: tuple[float, float, float] = (0.01, 0.02, 0.03)
    right: Reward | None = None
    """Which completions have the right answer, where the reward does not say so."""

    grpo: Row = field(default_factory=lambda: {"prompts": 16, "group": 8})
    """Prompts and completions of each that a step of GRPO takes."""


def text(completion: Any) -> str:
    """The text of a completion, which is a list of messages if the prompt is."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def plain(reward: Reward) -> Reward:
    """A reward of texts, also for completions that are messages."""

    def scored(completions: Sequence[Any], **columns: Any) -> list[float]:
        return reward([text(completion) for completion in completions], **columns)

    return scored


def _drawn(make: Callable[..., puzzles.Drawn], train: int, held_out: int, **options: Any) -> Callable[[], Rows]:
    def data() -> Rows:
        return Rows(puzzles.rows(make(100, **options), train), puzzles.rows(make(101, test=True, **options), held_out))

    return data


def _chain(length: int) -> Task:
    def data() -> Rows:
        rows = puzzles.rows(puzzles.chains(100, length), 100)
        return Rows(rows, rows)

    return Task(data, plain(puzzles.right_end), 3 * length, 24_576, 32, (CHAINS,))


def _builtin(name: str) -> Callable[[], Rows]:
    def data() -> Rows:
        from seedtune.tasks import create

        task = create(name)
        train, test = ([{"prompt": e.prompt, **e.columns} for e in rows] for rows in (task.train, task.test))
        return Rows(train, list(islice(test, 192)))

    return data


def _reward_of(name: str) -> Reward:
    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        from seedtune.tasks import create

        made: list[float] = create(name).rewards[0].function(completions=completions, **columns)
        return made

    return reward


def _answered(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    return [float(gold.lower() in made.lower()) for made, gold in zip(completions, answer, strict=True)]


_TALK: Row = {"models": (SMOLLM2,), "sigmas": (0.003, 0.006, 0.01), "grpo": {"prompts": 8, "group": 8}}

TASKS: dict[str, Task] = {
    "countdown": Task(_drawn(countdown.stream, 2000, 512), plain(countdown.solved), 10, 24_576, 32),
    "products": Task(_drawn(puzzles.products, 2000, 512), plain(puzzles.right_product), 5, 24_576, 32),
    **{f"chain of {length}": _chain(length) for length in (1, 2, 4, 8)},
    "conciseness": Task(
        *(_builtin("conciseness"), _reward_of("conciseness"), 24, 1536, 4), right=plain(_answered), **_TALK
    ),
    "format": Task(_builtin("instruction_format"), _reward_of("instruction_format"), 32, 1536, 8, **_TALK),
}


def model_path(name: str) -> str:
    """What to load for a model's name."""
    return name if name == SMOLLM2 else str(MODELS / name)
