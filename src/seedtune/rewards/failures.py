"""What failed calls cost: rules for when they stop a run, the lines written about them, and what is shown once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.rewards.aggregate import FIX
from seedtune.rewards.execution.call import Fault
from seedtune.types import Example

AT_ONCE, OF_PROMPTS = 8, 3
"""A function that never gave a value is stopped after so many failures on so many prompts (all, if there are fewer)."""

ROWS, COMPLETION = 20, 2000
"""Lines written of an evaluation's failures, for each reward, and characters of a completion in them."""

_log = logging.getLogger("seedtune.rewards")


def stop_reason(
    name: str, faults: Mapping[int, Fault], prompts: Sequence[int], *, proven: bool, share: float
) -> str | None:
    """Why a reward's faults (by place) end the run, or None; ``proven``: it has given values in this run.

    ``prompts`` has a prompt for each of the evaluation's completions, ``share`` is ``max_reward_failure_rate``.
    """
    latest = list(faults.values())[-1]
    if latest.kind == "load":
        return f"the reward function {name!r} cannot be loaded in a worker process: {latest.message}."
    if not proven and len(faults) >= min(AT_ONCE, len(prompts)):
        failing = {prompts[place] for place in faults}
        if len(failing) >= min(OF_PROMPTS, len(set(prompts))):
            return f"the reward function {name!r} {latest.message}, like every other call so far. {FIX}."
    if len(faults) > share * len(prompts):
        return (
            f"the reward function {name!r} failed on {len(faults)} of {len(prompts)} completions, more than "
            f"max_reward_failure_rate={share:g} allows; most often it {_usual(faults)}. {FIX}, or raise the limit."
        )
    return None


def _usual(faults: Mapping[int, Fault]) -> str:
    counts: dict[str, int] = {}
    for fault in faults.values():
        counts[fault.message] = counts.get(fault.message, 0) + 1
    return max(counts, key=lambda message: counts[message])


def rows(
    name: str, faults: Mapping[int, Fault], examples: Sequence[Example], texts: Sequence[str | None]
) -> list[dict[str, Any]]:
    """A line for each of the first failures; ``examples`` and ``texts`` by place."""
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
    """Shows a reward's faults, with their tracebacks: one of each kind."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, ...]] = set()

    def show(self, name: str, fault: Fault, *, who: str = "reward function", lost: str = "completion") -> None:
        """A fault of ``who``, unless one like it was shown."""
        what = fault.message.partition(":")[0] if fault.kind == "exception" else fault.kind
        if self._new(who, name, what):
            _log.warning(
                "the %s %r %s; that %s is not scored (shown once)%s",
                who,
                name,
                fault.message,
                lost,
                f"\n{fault.details}" if fault.details else "",
            )

    def note(self, name: str, why: str) -> None:
        """That a function cannot be isolated."""
        if self._new(name, "note"):
            _log.warning(
                "the reward function %r runs in this process, where a crash would end the run and a hang cannot be "
                "ended: it %s.",
                name,
                why,
            )

    def _new(self, *key: str) -> bool:
        new = key not in self._shown
        self._shown.add(key)
        return new
