"""Momentum and a second moment, rebuilt from the seeds of a window of past updates: no buffers of the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seedtune.types import Moments, Term, Update


@dataclass(frozen=True, slots=True)
class Memory:
    """What past updates have to do with the next; off where both betas are 0.

    ``momentum`` β₁ alone: u_t = (1 − β₁) Σ_{k<W} β₁ᵏ u⁰_{t−k} of the plain updates u⁰, so that each of them moves the
    centre by (almost) itself in all.  With ``second`` β₂ too: Adam (arXiv 1412.6980) on g = u⁰/α over the last
    ``window`` generations W; α is then the length of a step per element.
    """

    momentum: float = 0.0
    second: float = 0.0
    epsilon: float = 1e-8
    window: int = 8

    @property
    def active(self) -> bool:
        """Whether updates are more than themselves."""
        return self.momentum > 0.0 or self.second > 0.0

    def effective(self, plain: Sequence[Update], alphas: Sequence[float]) -> Update:
        """The update that the last of ``plain`` becomes, given those before it and the α of each.

        One without terms (all tied, or a probe) stays as it is.
        """
        last = plain[-1]
        if not self.active or not last.terms:
            return last
        recent = [(u, a) for u, a in zip(plain, alphas, strict=True) if u.terms][-self.window :]
        if self.second == 0.0:
            return replace(last, terms=self._sum([update for update, _ in recent]))
        *past, now = [tuple(_scaled(term, 1.0 / alpha) for term in update.terms) for update, alpha in recent]
        moments = Moments(self.momentum, self.second, self.epsilon, alphas[-1], tuple(past))
        return replace(last, terms=now, moments=moments)

    def _sum(self, recent: Sequence[Update]) -> tuple[Term, ...]:
        """Terms of all updates, each faded by its age, one per noise sample, in ascending order."""
        weights: dict[tuple[int, int], float] = {}
        for age, update in enumerate(reversed(recent)):
            factor = (1.0 - self.momentum) * self.momentum**age
            for term in update.terms:
                place = (term.generation, term.pair)
                weights[place] = weights.get(place, 0.0) + factor * term.weight
        return tuple(Term(*place, weight) for place, weight in sorted(weights.items()) if weight != 0.0)


def _scaled(term: Term, factor: float) -> Term:
    return term._replace(weight=factor * term.weight)
