"""Answers to mathematical questions: found in a completion, and compared with the right one.

Equal are equal strings, equal plain numbers, and what math-verify finds equal.  math-verify runs a computer algebra
system, and its own time limits are signals, which only the main thread may set and which would cancel other timers:
they are off.  Instead only LaTeX that is quick to compare gets that far (see `seedtune.rewards.latex`), so that no
answer can ask for 9^{9^{9}}; the pool that scores has a time limit as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from seedtune.rewards.answer_tags import READ, tagged
from seedtune.rewards.completions import text_of
from seedtune.rewards.latex import alike, bounded
from seedtune.rewards.optional import optional

BOX = "\\boxed{"
LENGTH = 200
"""Characters of an answer; a longer one is not read."""
LONGEST_NUMBER = 30
_NUMBER = re.compile(r"(-?)\$?(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(\.[0-9]+)?(?:/([1-9][0-9]*))?", re.ASCII)
_FRAC = re.compile(r"(-?)\\frac\{([0-9]+)\}\{([1-9][0-9]*)\}", re.ASCII)
_FRACTION = re.compile(r"\\[dt]frac")
_DRESS = re.compile(r"(\\\\)|\\left|\\right|\\[!,;: ]|\\\$|[ \t\n$]")
"""What makes no difference; a line break of a matrix, the group, stays."""


def math_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 if the final answer of a completion equals ``answer``, else 0.  MissingExtraError without math-verify."""
    return [float(equal(final_answer(text_of(c)), a)) for c, a in zip(completions, answer, strict=True)]


def final_answer(text: str) -> str | None:
    r"""What stands in the last ``\boxed{}``, else in ``<answer>``, else after ``####``; in linear time."""
    if len(text) > READ:
        return None
    boxed = _boxed(text)
    if boxed is None:
        boxed = tagged(text)
    if boxed is None and "####" in text:
        boxed = text[text.rfind("####") + 4 :].strip().partition("\n")[0].strip()
    return boxed


def answer_said(text: str) -> str:
    """The `final_answer` undressed, plain numbers as fractions: equal ones are one vote; empty if there is none."""
    plain = undressed(final_answer(text) or "")
    value = number(plain)
    return plain if value is None else str(value)


def _boxed(text: str) -> str | None:
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(BOX), min(len(text), start + len(BOX) + LENGTH + 1)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start + len(BOX) : place].strip()
    return None


def equal(found: str | None, answer: str) -> bool:
    """Whether an answer is right: as a string, as a plain number, or to math-verify."""
    if not found or len(found) > LENGTH:
        return False
    plain, right = undressed(found), undressed(answer)
    if plain == right:
        return bool(plain)
    one, two = number(plain), number(right)
    if one is not None and two is not None:
        return one == two
    return bounded(found) and alike(found, answer) and _verified(found, answer)


def undressed(text: str) -> str:
    """An answer without what makes no difference: blanks, dollars, size commands, percent and degree signs."""
    text = (
        _DRESS.sub(lambda match: match[1] or "", text)
        .rstrip(".")
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
    )
    return text.removesuffix("\\%").removesuffix("%").removesuffix("^\\circ").removesuffix("^{\\circ}")


def number(text: str) -> Fraction | None:
    r"""A plain number like ``-1,234.50``, ``3/4`` or ``\frac{3}{4}``, exactly; None if the text is anything else."""
    text = _FRAC.sub(r"\1\2/\3", text)
    found = _NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    if found is None or not (found[3] or found[4]) or (found[1] and found[2]):
        return None
    value = Fraction(f"{found[3].replace(',', '') or '0'}{found[4] or ''}") / int(found[5] or 1)
    return -value if found[1] or found[2] else value


def _verified(found: str, answer: str) -> bool:
    verifier = optional("math_verify", "comparing mathematical answers")
    right, given = _parsed(answer), _parsed(found)
    return bool(right and given and verifier.verify(right, given, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    r"""What math-verify reads in ``\boxed{text}`` (LaTeX only: its other reader calls eval); empty if nothing."""
    verifier = optional("math_verify", "comparing mathematical answers")
    # Both modules warn once that their time limits are off, which is meant.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    parsed: list[Any] = verifier.parse(
        f"{BOX}{text}}}", [verifier.LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed
