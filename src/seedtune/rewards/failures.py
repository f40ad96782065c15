"""Reward failures: when they stop a run, the records written about them, and log messages shown once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.rewards.execution.call import Fault
from seedtune.types import Example

FIX = "Fix it, or return None for completions it cannot score"
"""The fix that error messages suggest for a failing reward function."""

AT_ONCE, OF_PROMPTS = 8, 3
"""Failures and distinct prompts after which a function that never returned a value stops the run (all, if fewer)."""

UNSCORED = 3
"""Generations in a row without any score that stop the run; the last is not recorded, so a resumed run repeats it."""

ROWS, COMPLETION = 20, 2000
"""Failure records per reward and evaluation, and characters kept of a completion in each."""

_log = logging.getLogger("seedtune.rewards")


def stop_reason(
    name: str, faults: Mapping[int, Fault], prompts: Sequence[int], *, proven: bool, share: float
) -> str | None:
    """Return why a reward's faults (by completion index) end the run, or None.

    ``prompts`` has the prompt index of each completion of the evaluation, ``proven`` says whether the reward has
    returned values in this run, and ``share`` is ``max_reward_failure_rate``.
    """
    latest = list(faults.values())[-1]
    if latest.kind == "load":
        return f"the reward function {name!r} cannot be loaded in a worker process: {latest.message}."
    if not proven and len(faults) >= min(AT_ONCE, len(prompts)):
        failing = {prompts[place] for place in faults}
        if len(failing) >= min(OF_PROMPTS, len(set(prompts))):
            return f"the reward function {name!r} {latest.message}, like every other call so far. {FIX}."
    if len(faults) > share * len(prompts):
        ((usual, _),) = Counter(fault.message for fault in faults.values()).most_common(1)
        return (
            f"the reward function {name!r} failed on {len(faults)} of {len(prompts)} completions, more than "
            f"max_reward_failure_rate={share:g} allows; most often it {usual}. {FIX}, or raise the limit."
        )
    return None


def unscored_reason(names: Sequence[str]) -> str:
    """Return why generations without any score of the rewards ``names`` end the run."""
    return (
        f"no completion had a score in {UNSCORED} generations in a row (rewards: {', '.join(names)}). If a judge or "
        "another service is down, start it; if the completions are broken, see 'seedtune samples', and lower sigma or "
        "alpha in a new run."
    )


def rows(
    name: str, faults: Mapping[int, Fault], examples: Sequence[Example], texts: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Return a record for each of the first `ROWS` failures; ``examples`` and ``texts`` are by completion index."""
    return [
        {
            "reward": name,
            "kind": fault.kind,
            "error": fault.message,
            "prompt_id": examples[place].id,
            "completion": (texts[place] or "")[:COMPLETION],
            "details": fault.details,
        }
        for place, fault in sorted(faults.items())[:ROWS]
    ]


class Once:
    """Log the first fault of each kind per reward, with its traceback."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, ...]] = set()

    def show(self, name: str, fault: Fault, *, source: str = "reward function", lost: str = "completion") -> None:
        """Log a fault of the ``source`` called ``name`` unless a similar fault was logged before."""
        what = fault.message.partition(":")[0] if fault.kind == "exception" else fault.kind
        if self._new(source, name, what):
            _log.warning(
                "the %s %r %s; that %s is not scored (shown once)%s",
                source,
                name,
                fault.message,
                lost,
                f"\n{fault.details}" if fault.details else "",
            )

    def note(self, name: str, why: str) -> None:
        """Log once that a function cannot run in a worker process, and why."""
        if self._new(name, "note"):
            _log.warning(
                "the reward function %r runs in this process, where a crash would end the run and a hang cannot be "
                "ended: it %s.",
                name,
                why,
            )

    def constant(self, name: str, value: float) -> None:
        """Log once that a reward function returned the same value for all completions of several evaluations."""
        if self._new(name, "constant"):
            _log.warning(
                "the reward function %r returned %g for all completions, evaluation after evaluation, so it does not "
                "tell members apart (shown once). It gets one completion per call: if it compares completions, set "
                "reward_batch=prompt.",
                name,
                value,
            )

    def decline(self, prompt: int) -> None:
        """Log once that every reward function returned None for a completion of this prompt."""
        if self._new("declined"):
            _log.warning(
                "every reward function returned None for a completion of prompt %d: it is not scored, which is not a "
                "reward of 0 (shown once; frac_reward_missing counts). Return a number if such completions matter.",
                prompt,
            )

    def _new(self, *key: str) -> bool:
        known = len(self._shown)
        self._shown.add(key)
        return len(self._shown) > known
