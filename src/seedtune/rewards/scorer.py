"""Score rollouts while the engine still generates: input in any order, each reward's values in a fixed order."""

from __future__ import annotations

import math
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from seedtune.config.config import Config
from seedtune.errors import RewardError
from seedtune.rewards.base import Reward, keywords_of
from seedtune.rewards.execution.call import Fault, RewardCall, RewardResult, TrainerState, accepted, attempt, names
from seedtune.rewards.execution.placement import Placement, place_of
from seedtune.rewards.execution.pool import Done, Pool
from seedtune.rewards.execution.process import ProcessWorker
from seedtune.rewards.execution.thread import ThreadWorker
from seedtune.rewards.failures import Once, rows, stop_reason
from seedtune.types import Example

Report = Callable[[list[dict[str, Any]]], None]

CONSTANT = 5
"""Evaluations in a row in which a reward cannot tell members apart that are worth a warning; sparse ones begin so."""

STUCK = 8
"""Hung threads of one reward in this process that stop the run."""


class Completion(NamedTuple):
    """A completion by its prompt's id and its text."""

    prompt_id: int
    text: str


class Scorer:
    """Run a task's rewards: in worker processes if they can be imported there, in threads otherwise.

    Workers start on demand and run until `close`; the scorer can be used again after that.  With a ``step`` rewards
    get it as their ``trainer_state.global_step`` in every round.
    """

    def __init__(self, rewards: Sequence[Reward], config: Config, *, step: int | None = None) -> None:
        self.rewards, self.config, self.step = tuple(rewards), config, step
        self._report: Report | None = None
        self.advice = ""
        self.places = {reward.name: place_of(reward, config.reward_workers) for reward in rewards}
        self.proven: set[str] = set()
        self.stuck: Counter[str] = Counter()
        self.once = Once()
        self.reads_tokens = any(map(self.takes_ids, rewards))
        """Whether a reward gets the token ids of completions."""
        self.constant: Counter[str] = Counter()
        """Evaluations in a row in which a reward was the same for all completions."""
        self._columns: dict[Completion, dict[str, Any]] = {}
        self._metrics: dict[str, list[float]] = {}
        self._pools: dict[str, Pool] = {}
        weakref.finalize(self, _close, self._pools)

    def takes_ids(self, reward: Reward) -> bool:
        """Whether a reward gets token ids: a function of the user that names them or takes ``**kwargs``, as in TRL."""
        ours = str(getattr(reward.function, "__module__", "")).startswith("seedtune.")
        there = self.places[reward.name].where != "here" and not reward.inline and not ours
        return there and bool(accepted(reward.function, {"completion_ids": None}))

    def keep(self, report: Report, advice: str) -> None:
        """Send failure records to ``report``, once per evaluation, and end stop errors with ``advice``."""
        self._report, self.advice = report, advice

    @contextmanager
    def round(self, examples: Sequence[Example], prompts: Sequence[int], *, after: int) -> Iterator[Round]:
        """Open the scoring of one evaluation, whose completion i answers ``examples[prompts[i]]``.

        ``after`` is the number of generations before it.  An error inside the block ends all workers.
        """
        state = TrainerState(after if self.step is None else self.step, self.config.generations)
        current = Round(self, examples, prompts, state)
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
        """Run a call in the worker or thread where the reward is placed; ``done`` receives the result."""
        place = self.places[reward.name]
        if place.note is not None:
            self.once.note(reward.name, place.note)
        key = reward.name if place.where == "thread" else ""
        if key not in self._pools:
            processes = partial(ProcessWorker, self.config.reward_memory_mb)
            thread = place.where == "thread"
            self._pools[key] = Pool(ThreadWorker, 1) if thread else Pool(processes, self.config.reward_workers)
        self._pools[key].submit(call, done)

    def log(self, reward: str, answer: RewardResult, completions: Sequence[Completion]) -> None:
        """Keep what a call logged about its completions."""
        for name, column in answer.columns.items():
            for completion, value in zip(completions, column, strict=True):
                self._columns.setdefault(completion, {})[name] = value
        for name, numbers in answer.metrics.items():
            self._metrics.setdefault(f"rewards/{reward}/{name}", []).extend(filter(math.isfinite, numbers))

    def take_logged(self) -> tuple[dict[Completion, dict[str, Any]], dict[str, float]]:
        """Return, and forget, the logged columns by completion and the means of the logged metrics by name."""
        columns, self._columns = self._columns, {}
        metrics, self._metrics = self._metrics, {}
        return columns, {name: math.fsum(numbers) / len(numbers) for name, numbers in metrics.items() if numbers}

    def close(self) -> None:
        """End all workers."""
        _close(self._pools)


def _close(pools: dict[str, Pool]) -> None:
    while pools:
        pools.popitem()[1].close()


@dataclass(slots=True)
class _Batch:
    """The completions of one call of a reward, and how many of them have not arrived."""

    reward: Reward
    places: tuple[int, ...]
    missing: int
    alone: bool = False
    """Whether it was made without the environments."""


class Round:
    """The scoring of one evaluation.  Everything except the reward calls runs in the caller's thread.

    ``values`` has each reward's values by completion index, NaN where missing.  A completion on which any reward fails,
    or that a judge could not mark, is not scored by any: the sum of the others would reward it for the failure.
    """

    def __init__(
        self, scorer: Scorer, examples: Sequence[Example], prompts: Sequence[int], state: TrainerState
    ) -> None:
        self._scorer, self._prompts, self._state = scorer, prompts, state
        self._examples = [examples[prompt] for prompt in prompts]
        self._names = sorted({name for example in examples for name in example.columns})
        self._texts: list[str | None] = [None] * len(prompts)
        self.values = {reward.name: [math.nan] * len(prompts) for reward in scorer.rewards}
        self._faults: dict[str, dict[int, Fault]] = {reward.name: {} for reward in scorer.rewards}
        self._unscored: set[int] = set()
        self._environments: dict[int, Any] = {}
        self._ids: dict[int, Sequence[int]] = {}
        self._batches = [batch for reward in scorer.rewards for batch in self._batches_of(reward)]
        self._waiting: list[list[_Batch]] = [[] for _ in prompts]
        for batch in self._batches:
            for place in batch.places:
                self._waiting[place].append(batch)
        self._answers: queue.SimpleQueue[tuple[_Batch, RewardResult]] = queue.SimpleQueue()
        self._open = 0

    def add(self, place: int, text: str, environment: Any = None, ids: Sequence[int] | None = None) -> None:
        """Add the completion at index ``place`` and submit the calls whose completions are now all there.

        A conversation has an ``environment``, for functions that name ``environments`` or run in this process anyway;
        ``ids`` are the completion's tokens.
        Raises RewardError if too many completions have failed already.
        """
        if self._texts[place] is None:
            self._texts[place] = text
            if environment is not None:
                self._environments[place] = environment
            if ids is not None:
                self._ids[place] = ids
            for batch in self._waiting[place]:
                batch.missing -= 1
                if not batch.missing:
                    self._submit(batch)
        while not self._answers.empty():
            self._take(*self._answers.get())

    def finish(self) -> dict[str, list[float]]:
        """Wait for all calls and return ``values``; incomplete calls are made with the completions that arrived."""
        for batch in self._batches:
            if batch.missing:
                batch.places = tuple(place for place in batch.places if self._texts[place] is not None)
                self._submit(batch)
        while self._open:
            self._take(*self._answers.get())
        talks = bool(self._environments)
        for name, values in self.values.items():
            for place in self._unscored:
                values[place] = math.nan
            if self._scorer.places[name].where != "here" and self._scorer.config.reward_batch == "sample" and not talks:
                self._check_differences(name, values)
        return self.values

    def _check_differences(self, name: str, values: Sequence[float]) -> None:
        """Log once if a reward is the same for all completions again and again, as one that compares them is."""
        texts = dict[int, set[str]]()
        for place, value in enumerate(values):
            if not math.isnan(value):
                texts.setdefault(self._prompts[place], set()).add(self._texts[place] or "")
        known, constant = {value for value in values if not math.isnan(value)}, self._scorer.constant
        if len(known) > 1:
            constant[name] = 0
        elif known and max(map(len, texts.values())) > 1:
            constant[name] += 1
            if constant[name] >= CONSTANT:
                self._scorer.once.constant(name, known.pop())

    def declined(self) -> list[int]:
        """Return the indices of the completions for which every reward returned None, without a failure."""
        asked = [i for i, text in enumerate(self._texts) if text is not None and i not in self._unscored]
        return [i for i in asked if all(math.isnan(values[i]) for values in self.values.values())]

    def failed(self) -> dict[str, int]:
        """Return the number of completions on which each reward failed."""
        return {name: len(faults) for name, faults in self._faults.items()}

    def failures(self) -> list[dict[str, Any]]:
        """Return the failure records of this evaluation."""
        found = self._faults.items()
        return [row for name, faults in found for row in rows(name, faults, self._examples, self._texts)]

    def _batches_of(self, reward: Reward) -> list[_Batch]:
        """Group the completions into calls; those in the main thread wait until all rollouts are there."""
        config, here = self._scorer.config, self._scorer.places[reward.name].where == "here"
        size = reward.chunk if reward.inline else 1
        grouped = batches("all" if here else config.reward_batch, self._prompts, size)
        return [_Batch(reward, places, len(places) + here) for places in grouped]

    def _submit(self, batch: _Batch) -> None:
        reward, places = batch.reward, batch.places
        if not places:
            return
        self._open += 1
        examples, texts = [self._examples[i] for i in places], [self._texts[i] or "" for i in places]
        keywords = keywords_of(examples, texts, self._names)
        placement = self._scorer.places[reward.name]
        if self._environments and placement.where != "thread" and names(reward.function, "environments"):
            placement = self._scorer.places[reward.name] = Placement("thread")  # objects cannot be sent to a worker
        if self._environments and placement.where == "thread":
            keywords["environments"] = [self._environments[i] for i in places]
        if self._ids and self._scorer.takes_ids(reward):
            keywords["completion_ids"] = [list(self._ids[i]) for i in places]
        keywords, batch.alone = accepted(reward.function, keywords), "environments" not in keywords
        if placement.where == "here":
            self._take(batch, attempt(reward.function, keywords, len(places)))
            return
        # Inline rewards (a judge, a classifier) have their own time limits, one per request.
        seconds = threading.TIMEOUT_MAX if reward.inline else self._scorer.config.reward_timeout
        call = RewardCall(reward.function, placement.source, keywords, len(places), seconds, self._state)
        self._scorer.submit(reward, call, lambda answer: self._answers.put((batch, answer)))

    def _take(self, batch: _Batch, answer: RewardResult) -> None:
        self._open -= 1
        reward, places = batch.reward, batch.places
        for fault in answer.faults.values():
            if self._environments and batch.alone and "'environments'" in fault.message:  # missed among its **kwargs
                self._scorer.places[reward.name] = Placement("thread")
                self._submit(batch)
                return
            if fault.kind == "send" or (fault.kind == "load" and reward.source is None):
                self._scorer.places[reward.name] = Placement("thread", note=fault.message)
                self._submit(batch)
                return
        for place, value in zip(places, answer.values, strict=True):
            self.values[reward.name][place] = value
            if reward.inline and math.isnan(value):  # a judge's request failed
                self._unscored.add(place)
        self._unscored.update(places[i] for i in answer.faults)
        completions = [Completion(self._examples[i].id, self._texts[i] or "") for i in places]
        self._scorer.log(reward.name, answer, completions)
        if len(answer.faults) < len(places):
            self._scorer.proven.add(reward.name)
        if answer.faults:
            self._count(reward.name, {places[i]: fault for i, fault in answer.faults.items()})

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


def batches(
    grouping: Literal["sample", "prompt", "all"], prompts: Sequence[int], size: int = 1
) -> list[tuple[int, ...]]:
    """Return the completion indices of each call, independent of the order in which rollouts finish.

    Indices 0, 1, … run over members, then prompts, then samples; ``prompts[i]`` is the prompt of completion i.
    ``sample``: ``size`` neighbours; ``prompt``: those of one prompt; ``all``: the whole evaluation.
    """
    if grouping == "prompt":
        groups: dict[int, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        return [tuple(group) for group in groups.values()]
    size = size if grouping == "sample" else max(1, len(prompts))
    return [tuple(range(len(prompts))[first : first + size]) for first in range(0, len(prompts), size)]
