"""Scores from reasoning-gym's own scorers, generator by generator.

Several scorers call eval on the answer, directly or through sympy's parser: those are refused (`evaluates`).
Others give partial credit to any answer, or raise: here an empty answer gets 0, and so does a scorer that raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.base import text_of
from seedtune.rewards.optional import optional, tidied

LENGTH = 10_000
"""Longest answer in characters; a longer one scores 0."""
FORBIDDEN = frozenset({"eval", "exec", "parse_expr", "sympify", "parse_latex", "__import__"})
OWN_DATA = frozenset({"bitwise_arithmetic", "number_sorting"})
"""Scorers that call eval only on reasoning-gym's own problem or answer."""
_HUGE = re.compile(r"[0-9.][eE][+-]?[0-9]{3,}", re.ASCII)
"""``1e999999999`` is short as text but takes gigabytes as an exact number."""
_NO_NUMBER = re.compile(r"\b(?:nan|inf|infinity)", re.IGNORECASE)
"""Values that distance-based scorers would treat as equal to any number."""


def gym_score(
    completions: Sequence[Any],
    generator: Sequence[str],
    entry: Sequence[dict[str, Any]],
    floor: Sequence[float],
    **_: Any,
) -> list[float]:
    """Return reasoning-gym's score of each ``<answer>``, rescaled so that ``floor`` becomes 0.

    ``floor`` is the scorer's value for an answer without content, per row.
    """
    rows = zip(completions, generator, entry, floor, strict=True)
    return [marks(scorer(name), tagged(text_of(c)), made, least) for c, name, made, least in rows]


def marks(score: Callable[..., Any], answer: str | None, entry: dict[str, Any], floor: float) -> float:
    """Return (score − floor) / (1 − floor), at least 0; 0 for answers that are unsafe to pass to a scorer."""
    if not answer or len(answer) > LENGTH or _HUGE.search(answer):
        return 0.0
    if _NO_NUMBER.search(answer) and answer != entry["answer"]:
        return 0.0
    return max(0.0, (raw_score(score, answer, entry) - floor) / (1.0 - floor))


def raw_score(score: Callable[..., Any], answer: str, entry: dict[str, Any]) -> float:
    """Return the scorer's own value, at most 1; 0 if it raises or returns no finite number."""
    try:
        marks = float(score(answer, entry))
    except Exception:  # noqa: BLE001 - the named boundary: scorers raise on answers they did not expect
        return 0.0
    return min(1.0, marks) if math.isfinite(marks) else 0.0


@lru_cache(maxsize=256)
def scorer(name: str) -> Callable[..., Any]:
    """Return the scorer of a generator; raise MissingExtraError without reasoning-gym."""
    gym = optional("reasoning_gym", f"reasoning_gym:{name}")
    with tidied():
        found: Callable[..., Any] = gym.get_score_answer_fn(name)
    return found


def evaluates(name: str, dataset: type) -> str | None:
    """Return the forbidden function that a generator's scorer runs on answers, such as ``eval``, or None.

    Searches the bytecode of the scorer and of everything it calls in its class and module, so that new versions of
    reasoning-gym are checked, too.
    """
    if name in OWN_DATA:
        return None
    seen, waiting = set[str](), {"score_answer"}
    while waiting:
        word = waiting.pop()
        seen.add(word)
        function = _function(dataset, word)
        if function is not None and word not in FORBIDDEN:
            waiting |= _names(function.__code__) - seen
    return min(seen & FORBIDDEN, default=None)


def _function(dataset: Any, word: str) -> FunctionType | None:
    """Look up a method of the class or a function of its scorer's module by name."""
    found = getattr(dataset, word, dataset.score_answer.__globals__.get(word))
    return found if isinstance(found, FunctionType) else None


def _names(code: CodeType) -> set[str]:
    """Return every name used in code, including nested code."""
    nested = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, nested))
