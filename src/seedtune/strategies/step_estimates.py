"""Averages of observations over generations, in units of each generation's reward spread, and the realized gain.

The realized fraction compares what a step gained with the members' prediction: the part of their slope that the next
generation confirms.

The members of a generation predict that a step of ρ lengths gains gain − cost = slope·ρ − κρ² on their own prompts.
The next generation's mean reward measures this with the precision of two means over members and prompts; with
e² = e_t² + e_{t+1}²,

    realized fraction = (R̄_{t+1} − R̄_t + cost)/gain,   1/precision = (e² + e_κ²ρ⁴)/gain² + SURE²,

e_κ being the error of κ: a long step's gain depends as much on the curvature.  On the same prompts again (share 1) the
fraction is known after a step or two; on a few prompts of many it says next to nothing.  Both means are over perturbed
members, so both include the cost of a perturbation; if σ has changed, no fraction is computed.  The fraction of one
step is limited to [−1, 1] and is never more certain than ± `SURE`: a judge that was down for one generation must not
count against the slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from seedtune.strategies.base import Averages, Observation, Situation, State, StatefulRule
from seedtune.strategies.observation import step_ratio_of
from seedtune.strategies.quadratic_model import positive_mean
from seedtune.strategies.shaping import TIE


class WeighedValue(NamedTuple):
    """A measured value and its precision 1/error²; precision 0: nothing is known."""

    value: float = 0.0
    precision: float = 0.0


UNKNOWN = WeighedValue()

MEMORY = 0.9
"""Weight of the old average in each generation: about ten generations of memory."""

BEND, DOUBT = 0.2, 0.25
"""See `curvature`; in spreads of the members' rewards, chosen on the tasks of benchmarks/step_model.py."""

USUAL, UNUSUAL = 0.3, 0.1
"""Prior mean and standard error of the reliability, before anything is measured."""

LATER = 0.25
"""Final weight of the prior reliability, which describes the beginning of a run: its weight decays to this part."""

TINY = 1e-9


def informative(observation: Observation) -> bool:
    """Return whether members differ by more than rounding noise, and by a spread whose square is above 0."""
    spread = observation.get("spread", 0.0)
    return observation.get("length", 0.0) != 0.0 and spread > TIE * abs(observation["reward"]) and spread * spread > 0.0


class RunningAverages(StatefulRule):
    """Averages of observations over about ten generations."""

    def init(self) -> Averages:
        """Return averages of nothing."""
        return {"power": 0.0, "shared": 0.0, "curvature": 0.0, "success_rate": 0.5, "share": 0.0, "seen": 0}

    def update(self, state: Averages, observation: Observation, realized: WeighedValue = UNKNOWN) -> Averages:
        """Add one generation's observation; an uninformative generation changes nothing.

        The first few generations count equally, then older ones fade, so no initial value has an influence.
        ``realized`` is the `realized_fraction` of the last step.
        """
        if not informative(observation):
            return state
        spread, seen = observation["spread"], state["seen"]
        now = {
            "power": observation["power"] / (spread * spread),
            "shared": observation["shared"] / (spread * spread),
            "curvature": observation["curvature"] / spread if "curvature" in observation else state["curvature"],
            "success_rate": observation.get("success_rate", state["success_rate"]),
            "share": observation["share"],
        }
        weight = max(1.0 / (seen + 1), 1.0 - MEMORY)
        mean = {name: state[name] + weight * (value - state[name]) for name, value in now.items()}
        if "curvature" in observation and "curvature_error" not in state:  # first score of the unperturbed model
            mean |= {"curvature": now["curvature"], "success_rate": now["success_rate"]}
        for name, unit in (("shared_error", spread * spread), ("curvature_error", spread)):
            if name in observation:
                new = observation[name] / unit
                mean[name] = hypotenuse((1.0 - weight) * state[name], weight * new) if name in state else new
            elif name in state:
                mean[name] = state[name]
        usual = max(LATER, MEMORY * state.get("usual", 1.0))
        return {**mean, **_realized(state, realized), "usual": usual, "seen": min(seen + 1, 1_000_000)}

    def rolled_back(self, state: Averages) -> Averages:
        """Drop the realized fraction, which belongs to other weights."""
        return {name: value for name, value in state.items() if not name.startswith("realized")}


def _realized(before: Averages, new: WeighedValue) -> dict[str, float]:
    """Weigh each step by its precision, and older steps less."""
    old = before.get("realized_fraction", 0.0)
    known = MEMORY * before.get("realized_precision", 0.0) + new.precision
    if not 0.0 < known < math.inf:
        return {}
    return {"realized_fraction": old + new.precision / known * (new.value - old), "realized_precision": known}


def hypotenuse(one: float, other: float) -> float:
    """√(one² + other²) by products, sum and root, which are the same on every machine."""
    return math.sqrt(one * one + other * other)


def reliability(averages: Averages) -> float:
    """Estimate the part of the slope that holds over all training prompts, in [0, 1].

    Three estimates are combined in inverse proportion to their squared errors: the prior (`USUAL` ± `UNUSUAL` at the
    start of a run, decaying to a quarter of its weight); the correlation between different prompts, which says less the
    larger a generation's share of the training prompts is; and the fraction of the predicted gain that steps realized.
    The reliability cannot be negative, but the mean of the three can: the result is the mean of a normal variable given
    that it is positive.  So a few unlucky generations shorten steps but do not stop them.
    """
    prior = WeighedValue(USUAL, averages.get("usual", 1.0) / (UNUSUAL * UNUSUAL))
    realized = WeighedValue(averages.get("realized_fraction", 0.0), averages.get("realized_precision", 0.0))
    shared = _common(averages)
    # Written out: from Python 3.12 on, sum() rounds floats otherwise.
    precision = prior.precision + shared.precision + realized.precision
    parts = [one.precision / precision * one.value for one in (prior, shared, realized)]
    mean = parts[0] + parts[1] + parts[2]
    return _rounded(min(1.0, positive_mean(mean, 1.0 / math.sqrt(precision))))


def _common(averages: Averages) -> WeighedValue:
    """Estimate the reliability by the power shared by different prompts, as a part of the whole power.

    A negative estimate is chance, and where rewards are rare larger than its error suggests: it counts as 0.  An error
    that is rounding says nothing: two members without pairs always have the same estimate.
    """
    shared, power, error = averages["shared"], averages["power"], averages.get("shared_error", 0.0)
    others = 1.0 - averages["share"]
    if not (power > 0.0 and TIE * power < error < math.inf and math.isfinite(shared)) or others <= 0.0:
        return UNKNOWN
    root = min(others * power / error, 1.0 / TINY)
    return WeighedValue(max(0.0, min(1.0, shared / power)), root * root)


def curvature(averages: Averages) -> float:
    """Estimate κ, the cost of a step of a member's length, in reward spreads; at least `BEND`.

    Before anything is measured, the curvature is (0 ± `DOUBT`).  With a measured curvature, c ± e, it is the mean of
    both in inverse proportion to their squared errors.  It is taken to be positive: the estimate is the mean of a
    normal variable given that it is positive.  `BEND` is added, because c is the cost of random directions, and an
    update's direction is one along which rewards differ most.
    """
    trust = _trust(averages)
    return BEND + _rounded(positive_mean(trust and trust * averages["curvature"], curvature_error(averages)))


def curvature_error(averages: Averages) -> float:
    """Return the standard error of κ, in reward spreads."""
    return max(TINY, DOUBT * math.sqrt(1.0 - _trust(averages)))


def _trust(averages: Averages) -> float:
    error = averages.get("curvature_error", math.inf)
    return DOUBT * DOUBT / (DOUBT * DOUBT + error * error)


def _rounded(value: float) -> float:
    """Round to 9 digits: the last bits of exp differ between machines, and verify must decide as the run did."""
    return float(f"{value:.9g}")


SURE = 0.1
"""Lower bound of the realized fraction's error: a second-order model is not more exact than this."""

SAME = 0.01
"""Relative change of σ above which the members' mean reward changes with it."""


@dataclass(frozen=True, slots=True)
class PredictedGain(StatefulRule):
    """Gain and cost that the members predict of a step, with the reward before it."""

    comparable: bool = True
    """Whether the step alone changes the mean reward: no anchor pulls, and no reward compares members."""

    def update(self, state: State, now: Situation, alpha: float) -> State:
        """Predict for a step with α, {} if nothing is comparable; without a step the last prediction stays."""
        if alpha == 0.0:
            return state
        observation, averages = now.observation, now.averages
        if not self.comparable or not informative(observation) or "reward_error" not in observation:
            return {}
        step_ratio = step_ratio_of(alpha, now.sigma, observation, now.members)
        gained, bent = observation["slope"] * step_ratio, observation["spread"] * step_ratio * step_ratio
        error = hypotenuse(observation["reward_error"], bent * curvature_error(averages))
        made = {"gain": gained, "cost": bent * curvature(averages), "reward": observation["reward"], "error": error}
        return {**made, "sigma": now.sigma} if gained > 0.0 and all(map(math.isfinite, made.values())) else {}

    def rolled_back(self, state: State) -> State:
        """Drop the prediction, which belongs to other weights."""
        return {}


def realized_fraction(predicted: State, observation: Observation, sigma: float) -> WeighedValue:
    """Estimate the fraction of the predicted gain that was realized."""
    if not predicted or "reward_error" not in observation or abs(sigma - predicted["sigma"]) > SAME * sigma:
        return UNKNOWN
    error = hypotenuse(predicted["error"], observation["reward_error"])
    part = (observation["reward"] - predicted["reward"] + predicted["cost"]) / predicted["gain"]
    rough = hypotenuse(error / predicted["gain"], SURE)
    if not (math.isfinite(part) and math.isfinite(rough)):
        return UNKNOWN
    return WeighedValue(min(1.0, max(-1.0, part)), 1.0 / (rough * rough))
