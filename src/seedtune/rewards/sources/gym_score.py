"""Scores of reasoning-gym's own scorers, generator by generator.

Several of its scorers call eval, or sympy's parser, which calls eval, on the answer: those are refused (`evaluates`).
Others give a little to any answer at all, or raise: here an empty answer gets 0 and a scorer that raises gives 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.completions import text_of
from seedtune.rewards.optional import optional, tidied

LENGTH = 10_000
"""Characters of an answer; a longer one gets nothing."""
FORBIDDEN = frozenset({"eval", "exec", "parse_expr", "sympify", "parse_latex", "__import__"})
OWN_DATA = frozenset({"bitwise_arithmetic", "number_sorting"})
"""Scorers that call eval, but only on the problem or the answer that reasoning-gym made itself."""
_HUGE = re.compile(r"[0-9.][eE][+-]?[0-9]{3,}", re.ASCII)
"""``1e999999999`` is short to write and takes gigabytes as an exact number."""
_NO_NUMBER = re.compile(r"\b(?:nan|inf|infinity)", re.IGNORECASE)
"""At no distance from any number, to scorers that compare distances."""


def gym_score(
    completions: Sequence[Any],
    generator: Sequence[str],
    entry: Sequence[dict[str, Any]],
    floor: Sequence[float],
    **_: Any,
) -> list[float]:
    """What reasoning-gym gives the ``<answer>``, rescaled so that what it gives for nothing (``floor``) is 0."""
    rows = zip(completions, generator, entry, floor, strict=True)
    return [marks(scorer(name), tagged(text_of(c)), made, least) for c, name, made, least in rows]


def marks(score: Callable[..., Any], answer: str | None, entry: dict[str, Any], floor: float) -> float:
    """What an answer is worth above the ``floor``, from 0 to 1; 0 for one that no scorer should be asked about."""
    if not answer or len(answer) > LENGTH or _HUGE.search(answer):
        return 0.0
    if _NO_NUMBER.search(answer) and answer != entry["answer"]:
        return 0.0
    return max(0.0, (raw_score(score, answer, entry) - floor) / (1.0 - floor))


def raw_score(score: Callable[..., Any], answer: str, entry: dict[str, Any]) -> float:
    """The scorer's own value, at most 1; 0 where it raises or gives no number."""
    try:
        marks = float(score(answer, entry))
    except Exception:  # noqa: BLE001 - the named boundary: scorers raise on answers they did not expect
        return 0.0
    return min(1.0, marks) if math.isfinite(marks) else 0.0


@lru_cache(maxsize=256)
def scorer(name: str) -> Callable[..., Any]:
    """The scorer of a generator; MissingExtraError without reasoning-gym."""
    gym = optional("reasoning_gym", f"reasoning_gym:{name}")
    with tidied():
        found: Callable[..., Any] = gym.get_score_answer_fn(name)
    return found


def evaluates(name: str, dataset: type) -> str | None:
    """The function that a generator's scorer runs on answers although it must not, such as ``eval``; None if none.

    Found in the compiled scorer and all that it calls in its own class and module, so that a new version of
    reasoning-gym is looked at, too.
    """
    if name in OWN_DATA:
        return None
    seen: set[str] = set()
    waiting = ["score_answer"]
    while waiting:
        word = waiting.pop()
        if word in seen:
            continue
        seen.add(word)
        if word not in FORBIDDEN:
            waiting += _names(_function(dataset, word))
    return min(seen & FORBIDDEN, default=None)


def _function(dataset: type, word: str) -> FunctionType | None:
    """A method of the class, or a function beside it."""
    scorer_globals = vars(dataset).get("score_answer", getattr(dataset, "score_answer", None)).__globals__
    found = getattr(dataset, word, scorer_globals.get(word))
    return found if isinstance(found, FunctionType) else None


def _names(function: FunctionType | None) -> list[str]:
    """Every name that a function's code uses, nested code included."""
    codes: list[CodeType] = [function.__code__] if function is not None else []
    names: list[str] = []
    while codes:
        code = codes.pop()
        names += code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names
