"""Tasks ``reasoning_gym:NAME``: any of reasoning-gym's generators, with its own scorer.

For example, ``reasoning_gym:spell_backward``::

    Spell this word backward (example: sun -> nus): ammonia

    Give only your final answer between <answer> and </answer>.

    <answer>ainomma</answer>
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from pydantic import Field

from seedtune.errors import ConfigError, suggest
from seedtune.rewards.answer_tags import voted_answer
from seedtune.rewards.base import Reward
from seedtune.rewards.optional import optional, tidied
from seedtune.rewards.sources.gym_score import evaluates, gym_score, raw_score, scorer
from seedtune.tasks.base import Sizes, Task
from seedtune.tasks.data.rows import chat, examples
from seedtune.tasks.user_task import validated
from seedtune.types import Example

PREFIX = "reasoning_gym:"
INSTRUCTION = "Give only your final answer between <answer> and </answer>."
INSTEAD = {
    "countdown": "Use task=countdown.",
    "arc_agi": "Use task=arc.",
    "rearc": "Use task=arc and task_args.generator=rearc.",
}
"""Alternatives suggested for refused generators."""
TUPLES = ("arc_agi", "rearc")
"""Generators whose scorers compare with tuples, which JSON does not preserve."""
NOTHING = ("", "?")
"""Answers without content."""


class GymSettings(Sizes):
    """The number of examples, and the generator's own settings."""

    train_size: int = Field(default=500, ge=1, le=100_000)
    """Training examples.  They are generated when a run starts; some generators take 0.1 s per example."""

    test_size: int = Field(default=200, ge=0, le=100_000)
    """Held-out examples."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """The generator's settings, such as ``max_word_len: 5``."""


def from_gym(name: str, given: Mapping[str, Any]) -> Task:
    """Create the task of a generator; raise ConfigError if it is unknown or its scorer cannot be used."""
    settings = validated(GymSettings, given)
    _check(name)
    found = map(partial(_row, name), items(name, settings, settings.settings))
    test = examples(islice(found, settings.test_size), "test")
    train = examples(islice(found, settings.train_size), "train")
    answered = all(isinstance(example.columns["answer"], str) for example in (*train, *test))
    return Task(
        name=PREFIX + name,
        train=train,
        test=test,
        rewards=(Reward("score", gym_score, source="seedtune.rewards.sources.gym_score.gym_score"),),
        gold=tagged_answer if answered else None,
        full_marks=1.0,
        answer=voted_answer,
    )


def tagged_answer(example: Example) -> str:
    """Return the generator's answer in ``<answer>`` tags."""
    return f"<answer>\n{example.columns['answer']}\n</answer>"


def _check(name: str) -> None:
    gym = optional("reasoning_gym", PREFIX + name)
    known = gym.factory.DATASETS
    if name not in known:
        raise ConfigError(
            f"task={PREFIX + name!r}: reasoning-gym has no generator {name!r}.{suggest(name, known)} It has "
            f"{len(known)}: {', '.join(sorted(known))}"
        )
    if name in TUPLES:
        raise ConfigError(f"task={PREFIX + name!r} is refused: its scorer needs more than plain data. {INSTEAD[name]}")
    culprit = evaluates(name, known[name][0])
    if culprit is not None:
        raise ConfigError(
            f"task={PREFIX + name!r} is refused: its scorer runs {culprit} on what the model wrote. "
            f"{INSTEAD.get(name, 'Use another generator, or a reward of your own.')}"
        )


def items(name: str, sizes: Sizes, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield entries with distinct questions in the generator's order.

    Raises ConfigError, quoting the generator, for unknown or invalid settings, and when there are no more questions.
    """
    wanted = sizes.train_size + sizes.test_size
    data = _dataset(name, settings, seed=sizes.seed, size=4 * wanted)
    seen: set[str] = set()
    for index in range(4 * wanted):
        entry = data[index]
        if entry["question"] not in seen and entry["answer"] != "":
            seen.add(entry["question"])
            yield entry
    raise ConfigError(
        f"{PREFIX}{name} made only {len(seen)} different questions of the {wanted} asked for. "
        "Lower task_args.train_size or task_args.test_size."
    )


def _dataset(name: str, settings: Mapping[str, Any], **common: int) -> Any:
    gym = optional("reasoning_gym", PREFIX + name)
    own = set(gym.factory.DATASETS[name][1].__dataclass_fields__) - {"seed", "size"}
    for key in settings:
        if key not in own:
            raise ConfigError(
                f"unknown setting 'task_args.settings.{key}'.{suggest(key, own)} {name} has: {', '.join(sorted(own))}"
            )
    try:
        with tidied():
            return gym.create_dataset(name, **common, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"task_args.settings={dict(settings)!r}: {name} says: {error}") from error


def question(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the prompt of a generator's entry."""
    return chat(f"{entry['question'].strip()}\n\n{INSTRUCTION}")


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Convert an entry to a row of plain data with its score ``floor``; raise ConfigError if the scorer is unusable."""
    plain = json.loads(json.dumps({"answer": entry["answer"], "metadata": entry["metadata"]}, default=str))
    plain["question"] = entry["question"]
    score = scorer(name)
    floor = max(raw_score(score, text, plain) for text in NOTHING)
    answer = entry["answer"]
    if floor >= 1.0:
        raise ConfigError(f"task={PREFIX + name!r} is refused: its scorer gives full marks to any answer at all.")
    if isinstance(answer, str) and raw_score(score, answer, plain) < 1.0:
        raise ConfigError(
            f"task={PREFIX + name!r} is refused: its scorer does not give full marks to its own answer once the entry "
            "has been plain data. Use another generator."
        )
    return {"prompt": question(entry), "generator": name, "entry": plain, "floor": floor, "answer": answer}
