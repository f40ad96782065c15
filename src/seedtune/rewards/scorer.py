"""Score rollouts while the engine still generates: input in any order, each reward's values in a fixed order."""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from seedtune.config.config import Config
from seedtune.errors import RewardError
from seedtune.rewards.aggregate import column_names, keywords_of
from seedtune.rewards.base import Reward
from seedtune.rewards.execution.batching import Batching, batches
from seedtune.rewards.execution.call import Fault, RewardCall, RewardResult, accepted, attempt
from seedtune.rewards.execution.placement import Placement, place_of
from seedtune.rewards.execution.pool import Done, Pool
from seedtune.rewards.execution.process import ProcessWorker
from seedtune.rewards.execution.thread import ThreadWorker
from seedtune.rewards.failures import Once, rows, stop_reason
from seedtune.types import Example

Report = Callable[[list[dict[str, Any]]], None]

STUCK = 8
"""Hung threads of one reward in this process that stop the run."""


@dataclass(frozen=True, slots=True)
class RewardScores:
    """Each reward's values by completion index, NaN where missing, and the number of completions it failed on."""

    values: dict[str, list[float]]
    failed: dict[str, int]


class Scorer:
    """Run a task's rewards: in worker processes if they can be imported there, in threads otherwise.

    Workers start on demand and run until `close`; the scorer can be used again after that.
    """

    def __init__(self, rewards: Sequence[Reward], config: Config) -> None:
        self.rewards, self.config = tuple(rewards), config
        self._report: Report | None = None
        self.advice = ""
        self.places = {reward.name: place_of(reward, config.reward_workers) for reward in rewards}
        self.proven: set[str] = set()
        self.stuck: Counter[str] = Counter()
        self.once = Once()
        self._pools: dict[str, Pool] = {}

    def keep(self, report: Report, advice: str) -> None:
        """Send failure records to ``report``, once per evaluation, and end stop errors with ``advice``."""
        self._report, self.advice = report, advice

    @contextmanager
    def round(self, examples: Sequence[Example], prompts: Sequence[int], *, after: int) -> Iterator[Round]:
        """Open the scoring of one evaluation, whose completion i answers ``examples[prompts[i]]``.

        ``after`` is the number of generations before it.  An error inside the block ends all workers.
        """
        current = Round(self, examples, prompts)
        try:
            yield current
        except BaseException:
            self.close()
            raise
        finally:
            failures = current.failures()
            if failures and self._report is not None:
                self._report([{"after_generation": after, **row} for row in failures])

    def submit(self, reward: Reward, call: RewardCall, done: Done) -> None:
        """Run a call where the reward is placed; ``done`` receives the result."""
        place = self.places[reward.name]
        if place.note is not None:
            self.once.note(reward.name, place.note)
        self._pool(reward, place).submit(call, done)

    def move_here(self, reward: Reward, why: str) -> None:
        """Run a reward in this process from now on; ``why`` is logged once."""
        self.places[reward.name] = Placement("thread", note=why)

    def close(self) -> None:
        """End all workers."""
        for pool in self._pools.values():
            pool.close()
        self._pools = {}

    def batching(self, reward: Reward) -> Batching:
        """Return how completions are grouped into calls of a reward."""
        if self.places[reward.name].where == "here":
            return "all"
        how = self.config.reward_batch
        return "chunk" if how == "sample" and reward.inline else how

    def _pool(self, reward: Reward, place: Placement) -> Pool:
        key = reward.name if place.where == "thread" else ""
        if key not in self._pools:
            memory = self.config.reward_memory_mb
            processes = partial(Pool, partial(ProcessWorker, memory), self.config.reward_workers)
            self._pools[key] = processes() if place.where == "worker" else Pool(ThreadWorker, 1)
        return self._pools[key]


class Round:
    """The scoring of one evaluation.  Everything except the reward calls runs in the caller's thread."""

    def __init__(self, scorer: Scorer, examples: Sequence[Example], prompts: Sequence[int]) -> None:
        self._scorer, self._prompts = scorer, prompts
        self._examples = [examples[prompt] for prompt in prompts]
        self._names = column_names(examples)
        self._texts: list[str | None] = [None] * len(prompts)
        self._values = {reward.name: [math.nan] * len(prompts) for reward in scorer.rewards}
        self._faults: dict[str, dict[int, Fault]] = {reward.name: {} for reward in scorer.rewards}
        self._parts = [_Parts(reward, batches(scorer.batching(reward), prompts)) for reward in scorer.rewards]
        self._answers: queue.SimpleQueue[tuple[Reward, tuple[int, ...], RewardResult]] = queue.SimpleQueue()
        self._open = 0

    def add(self, place: int, text: str) -> None:
        """Add the completion at index ``place`` and submit the calls whose completions are now all there.

        Raises RewardError if too many completions have failed already.
        """
        if self._texts[place] is None:
            self._texts[place] = text
            for part in self._parts:
                batch = part.complete(place)
                if batch and self._scorer.places[part.reward.name].where != "here":
                    self._submit(part.reward, batch)
        while not self._answers.empty():
            self._take(*self._answers.get())

    def finish(self) -> RewardScores:
        """Wait for all values and return them; calls with missing completions are made with the ones that arrived."""
        for part in self._parts:
            here = self._scorer.places[part.reward.name].where == "here"
            for batch in part.batches if here else part.incomplete():
                self._submit(part.reward, tuple(place for place in batch if self._texts[place] is not None))
        while self._open:
            self._take(*self._answers.get())
        return RewardScores(self._values, {name: len(faults) for name, faults in self._faults.items()})

    def failures(self) -> list[dict[str, Any]]:
        """Return the failure records of this evaluation."""
        found = self._faults.items()
        return [row for name, faults in found for row in rows(name, faults, self._examples, self._texts)]

    def _submit(self, reward: Reward, batch: tuple[int, ...]) -> None:
        if not batch:
            return
        examples, texts = [self._examples[i] for i in batch], [self._texts[i] or "" for i in batch]
        keywords = _wanted(reward, keywords_of(examples, texts, self._names))
        place, self._open = self._scorer.places[reward.name], self._open + 1
        if place.where == "here":
            self._take(reward, batch, attempt(reward.function, keywords, len(batch)))
            return
        # Inline rewards (a judge, a classifier) have their own time limits, one per request.
        seconds = threading.TIMEOUT_MAX if reward.inline else self._scorer.config.reward_timeout
        call = RewardCall(reward.function, place.source, keywords, len(batch), seconds)
        self._scorer.submit(reward, call, lambda answer: self._answers.put((reward, batch, answer)))

    def _take(self, reward: Reward, batch: tuple[int, ...], answer: RewardResult) -> None:
        self._open -= 1
        if any(fault.kind == "send" or self._unfound(reward, fault) for fault in answer.faults.values()):
            self._scorer.move_here(reward, answer.faults[0].message)
            self._submit(reward, batch)
            return
        for place, value in zip(batch, answer.values, strict=True):
            self._values[reward.name][place] = value
        if len(answer.faults) < len(batch):
            self._scorer.proven.add(reward.name)
        if answer.faults:
            self._count(reward.name, {batch[i]: fault for i, fault in answer.faults.items()})

    def _unfound(self, reward: Reward, fault: Fault) -> bool:
        """Whether loading failed in a worker for a function without a declared ``source``."""
        return fault.kind == "load" and reward.source is None

    def _count(self, name: str, faults: dict[int, Fault]) -> None:
        """Record and log new faults; raise RewardError if there are too many."""
        scorer, mine = self._scorer, self._faults[name]
        mine.update(faults)
        for fault in set(faults.values()):
            scorer.once.show(name, fault)
            scorer.stuck[name] += fault.kind == "hang" and scorer.places[name].where == "thread"
        share = scorer.config.max_reward_failure_rate
        reason = stop_reason(name, mine, self._prompts, proven=name in scorer.proven, share=share)
        if reason is None and scorer.stuck[name] >= STUCK:
            reason = f"the reward function {name!r} hangs in {STUCK} threads of this process, which cannot end them."
        if reason is not None:
            raise RewardError(f"{reason} {scorer.advice}".strip())


class _Parts:
    """The calls of a reward and the completions each one still waits for."""

    def __init__(self, reward: Reward, found: list[tuple[int, ...]]) -> None:
        self.reward, self.batches = reward, found
        self._of = {place: number for number, batch in enumerate(found) for place in batch}
        self._missing = [len(batch) for batch in found]

    def complete(self, place: int) -> tuple[int, ...]:
        """Mark a completion as arrived; return its call if that was the last one missing, else ()."""
        number = self._of[place]
        self._missing[number] -= 1
        return () if self._missing[number] else self.batches[number]

    def incomplete(self) -> list[tuple[int, ...]]:
        """Return the calls that still wait for completions."""
        return [batch for batch, missing in zip(self.batches, self._missing, strict=True) if missing]


def _wanted(reward: Reward, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep only the keywords that the function accepts; keep all if its signature is unavailable."""
    try:
        return accepted(reward.function, keywords)
    except (TypeError, ValueError):
        return keywords
