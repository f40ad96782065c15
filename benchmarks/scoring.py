"""What slow and quick rewards add to a generation: scored while rollouts come in, and all of them at the end.

    python benchmarks/scoring.py [--seconds 10] [--members 32] [--samples 8] [--output benchmarks/results/scoring.md]

The engine is scripted: it yields rollouts evenly over the given time, and sleeps in between.  The slow reward sleeps
200 ms for every completion; the quick one is a line of Python, whose cost is that of reaching it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import judged

from seedtune.config.config import Config
from seedtune.rewards.base import Reward
from seedtune.rollouts.evaluator import Evaluator
from seedtune.tasks.base import Task
from seedtune.tasks.builtin.conciseness import length_error
from seedtune.tasks.data.rows import examples
from seedtune.types import Job, Member, Plan, Rollout


class Scripted:
    """Rollouts evenly over ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        (job,) = jobs
        began, done = time.perf_counter(), 0
        count = len(job.members) * job.sampling.samples * len(job.prompts)
        for member in job.members:
            for prompt in range(len(job.prompts)):
                for sample in range(job.sampling.samples):
                    done += 1
                    left = began + self.seconds * done / count - time.perf_counter()
                    if left > 0.0:
                        time.sleep(left)
                    yield Rollout(job.id, member, prompt, sample, f"answer {done}", (1,), 3, "stop")


def generations(
    reward: Reward, arguments: argparse.Namespace, seconds: float, count: int, **settings: object
) -> list[float]:
    """Seconds of generations one after the other, workers started in the first."""
    data = examples([{"prompt": f"prompt {i}", "answer": "an answer"} for i in range(arguments.samples)], "train")
    config = Config(population=arguments.members, **settings)
    members = tuple(Member(0, pair, sign) for pair in range(arguments.members // 2) for sign in (1, -1))
    evaluator = Evaluator(Scripted(seconds), Task("judged", data, data, (reward,)), config)
    took = []
    with closing(evaluator.scorer):
        for generation in range(count):
            began = time.perf_counter()
            outcome = evaluator.evaluate(members, data, plan=Plan(generation, 0.1, members))
            took.append(time.perf_counter() - began)
            assert not any(outcome.failed.values())
            assert (
                outcome.rewards == [float(len(rollout.text)) for rollout in outcome.rollouts] or reward.name != "judged"
            )
    return took


def slow(arguments: argparse.Namespace) -> list[str]:
    lines = ["| how | first generation | second | added by scoring |", "| --- | --- | --- | --- |"]
    for name, settings in {"as configured by default": {}, "4 workers": {"reward_workers": 4}}.items():
        first, second = generations(Reward("judged", judged.judged), arguments, arguments.seconds, 2, **settings)
        added = max(first, second) / arguments.seconds - 1
        lines.append(f"| {name} | {first:.2f} s | {second:.2f} s | {added:.1%} at the most |")
    serial = arguments.members * arguments.samples * judged.SECONDS
    lines.append(
        f"| one call at the end (computed) | {arguments.seconds + serial:.1f} s | | {serial / arguments.seconds:.0%} |"
    )
    return lines


def quick(arguments: argparse.Namespace) -> list[str]:
    ways = {
        "our function, main thread": (Reward("length_error", length_error), {}),
        "a user's, one completion a call, worker": (
            Reward("length", length_error, source="seedtune.tasks.builtin.conciseness.length_error"),
            {},
        ),
        "a user's, one completion a call, thread": (
            Reward("length", length_error, source="x:y"),
            {"reward_workers": 0},
        ),
        "a user's, all in one call, worker": (
            Reward("length", length_error, source="seedtune.tasks.builtin.conciseness.length_error"),
            {"reward_batch": "all"},
        ),
    }
    lines = ["| how | a generation's scoring | each completion |", "| --- | --- | --- |"]
    count = arguments.members * arguments.samples
    for name, (reward, settings) in ways.items():
        seconds = statistics.median(generations(reward, arguments, 0.0, 9, **settings)[1:])
        lines.append(f"| {name} | {seconds * 1e3:.1f} ms | {seconds / count * 1e6:.0f} µs |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = "\n".join(
        [
            "# Scoring",
            "",
            f"`python benchmarks/scoring.py`, Python {platform.python_version()}, {os.cpu_count()} cores, "
            f"{platform.machine()}, shared with other work. {arguments.members} members × {arguments.samples} prompts, "
            f"rollouts evenly over {arguments.seconds:g} s.",
            "",
            f"A reward that sleeps {judged.SECONDS * 1e3:g} ms for each completion (limit: 10 % added):",
            "",
            *slow(arguments),
            "",
            "A quick reward, all rollouts there at once, so that nothing overlaps (medians of 8 generations):",
            "",
            *quick(arguments),
            "",
        ]
    )
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
