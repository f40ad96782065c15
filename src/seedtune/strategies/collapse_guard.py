"""Collapse guard: detects that rewards fell far below their best average, and names the generation to roll back to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seedtune.strategies.base import Observation, State, StatefulRule
from seedtune.types import Plan


@dataclass(frozen=True, slots=True)
class Guard(StatefulRule):
    """Watch the mean reward of members through an average over about ``window`` generations.

    The noise of one generation (other prompts, other members) is estimated from successive differences,
    v = ½ mean (R_t − R_{t−1})² (von Neumann 1941), which a trend hardly affects.  A collapse is an average ``limit`` of
    its own standard deviations below the best average so far; the run then rolls back to that best generation.
    """

    window: int = 4
    limit: float = 8.0
    quiet: int = 8
    """Initial generations in which no collapse is reported: the noise estimate is too uncertain."""

    surprise: float = 4.0
    """A generation counts as at most this many standard deviations below the average: its prompts may be the cause."""

    unscored: int | None = None
    """Consecutive generations without any score that count as a collapse, too, if the engine scores: the weights have
    moved too far.  None: without the scores of a judge nothing is known about the weights."""

    part: float = 0.5
    """A generation in which a smaller part of the completions has scores than usual is no evidence: a judge is down."""

    wider: float = 1.25
    """The average restarts when σ has grown by more than this factor: rewards under different σ are not comparable."""

    def update(self, state: State, plan: Plan, observation: Observation) -> tuple[int | None, State]:
        """Return the generation to roll back to, None without a collapse, and the state after one more generation."""
        if not observation and self.unscored is not None:
            missed = state.get("missed", 0) + 1
            return state.get("best_at") if missed >= self.unscored else None, {**state, "missed": missed}
        scored = observation.get("scored", 1.0)
        usual = max(scored, state.get("scored", 1.0 if state else 0.0))
        if not observation or scored < self.part * usual:
            return None, state
        sigma = state.get("sigma", plan.sigma)
        if plan.sigma > self.wider * sigma:
            state, sigma = {}, plan.sigma
        error = observation["spread"] * observation["spread"] / len(plan.members)
        rollback_to, now = self._watched(state, observation["reward"], plan.generation, error)
        return rollback_to, {**now, "sigma": sigma, **({"scored": usual} if usual < 1.0 else {})}

    def _watched(self, state: State, reward: float, generation: int, error: float) -> tuple[int | None, State]:
        """Update with a mean reward; ``error``, its variance over the members, is a lower bound of the noise."""
        seen = state.get("seen", 0) + 1
        weight = max(1.0 / seen, 2.0 / (self.window + 1))
        before, known = state.get("level", reward), max(error, state.get("noise", 0.0))
        counted = reward if seen <= self.quiet else max(reward, before - self.surprise * math.sqrt(known))
        level = before + weight * (counted - before)
        noise = max(error, self._noise(state, reward, seen))
        now = {"seen": seen, "level": level, "last": reward, "noise": noise}
        if seen <= self.window or level >= state.get("best", -math.inf):
            return None, {**now, "best": level, "best_at": generation}
        now |= {"best": state["best"], "best_at": state["best_at"]}
        allowed = self.limit * math.sqrt(weight / (2.0 - weight) * known)
        collapsed = seen > self.quiet and known > 0.0 and level < state["best"] - allowed
        return now["best_at"] if collapsed else None, now

    def rolled_back(self, state: State) -> State:
        """Restart the average at the best one."""
        kept = {name: value for name, value in state.items() if name in ("noise", "best", "best_at", "sigma", "scored")}
        return {**kept, "seen": self.quiet + 1, "level": state["best"], "last": state["best"]}

    def _noise(self, state: State, reward: float, seen: int) -> float:
        """Update the noise estimate, over more generations than the level; the jump of a collapse is bounded."""
        if seen < 2:
            return 0.0
        apart: float = reward - state["last"]
        difference = 0.5 * apart * apart
        if seen == 2:
            return difference
        rate = max(1.0 / (seen - 1), 0.03)
        before: float = state["noise"]
        bounded = min(difference, 9.0 * before) if seen > self.quiet and before > 0.0 else difference
        return before + rate * (bounded - before)
