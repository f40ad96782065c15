"""Extract mathematical answers from completions, and compare them with the right answer.

Two answers are equal if they are equal strings, equal plain numbers, or equal according to math-verify.  math-verify
runs a computer algebra system.  Its time limits use signals, which only the main thread may set and which would cancel
other timers, so they are off.  Instead only LaTeX that is quick to compare is passed to it (`bounded`, `alike`), so
that no answer can ask for 9^{9^{9}}; the scoring pool has a time limit as well.

LaTeX passed to computer algebra is short, has known commands and small powers, and resembles the right answer.

sympy has no limits of its own.  The exclusions here come from comparing thousands of random answers: towers of powers,
long products of symbols, infinity in arithmetic, and large numbers beside logarithms took it minutes.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

from seedtune.rewards.answer_tags import READ, tagged
from seedtune.rewards.base import text_of
from seedtune.rewards.optional import optional

DEPTH, POWERS, PRODUCT, DIGITS = 8, 6, 64, 15
"""Limits for math-verify: nested brackets, powers, the product of their exponents, and digits of a number."""
LOGARITHM_DIGITS = 8
"""Limit of (digits of all numbers) · (product of the exponents) in an answer with a logarithm."""
SLACK = 40
"""An answer may have this many characters more than twice the length of the right one."""
FUNCTIONS = frozenset(re.findall("[a-z]+", "sin cos tan cot sec csc arcsin arccos arctan log ln"))
COMMANDS = FUNCTIONS | frozenset(
    re.findall(
        "[a-z]+",
        "dfrac tfrac sqrt pi cdot times div left right text mathrm infty infinity cup cap in le ge leq geq lt gt ne "
        "frac pm mp circ degree begin end pmatrix matrix bmatrix cases neq theta alpha beta gamma phi lambda omega mu "
        "sigma angle triangle emptyset varnothing mathbb mathbf quad langle rangle lfloor rfloor lceil rceil "
        "displaystyle ldots dots sim mid",
    )
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_EXPONENT = re.compile(r"\^ *(?:\{([^{}^]*)\}|([0-9]+|[^{}^]))")
_TEXT = re.compile(r"\\(?:text|mathrm|begin|end)\{[^{}]*\}")
_ASSIGNED = re.compile(r"^ *[a-zA-Z] *(?:=|\\in\b)")
_INTERVALS = re.compile(
    r"(?:[a-zA-Z] *\\in\b)?(?:[0-9()\[\]{},./ -]|\\(?:infty|infinity|cup|left|right|frac|sqrt|pi)\b)*"
)
_TOWER = re.compile(r"\^ *(?:\{[^{}]*\}|[0-9]+|[^{}]) *\^|\\sqrt *\[(?! *[2-9] *\])")
"""A power of a power without brackets, or a root other than the second to the ninth."""


def bounded(text: str) -> bool:
    """Whether computer algebra on this LaTeX must be quick: known commands, small numbers and powers, few brackets."""
    if not text.isascii() or not text.isprintable() or "!" in text or "**" in text:
        return False
    if (
        text.count("{") != text.count("}")
        or text.count("\\sqrt") > 3
        or not COMMANDS.issuperset(_COMMAND.findall(text))
    ):
        return False
    if any(len(digits) > DIGITS for digits in re.findall("[0-9.,]+", text)):
        return False
    depth = accumulate(((character in "([{") - (character in ")]}") for character in text), initial=0)
    return max(depth) <= DEPTH and _powers_are_small(text)


def alike(found: str, answer: str) -> bool:
    """Whether an answer resembles the right one: not much longer, and with no further variables or functions.

    Computer algebra compares such answers quickly; others are wrong, or far from simplified.
    """
    if len(found) > 2 * len(answer) + SLACK or _functions(found) - _functions(answer):
        return False
    if "\\inf" in found and not _INTERVALS.fullmatch(found):
        return False
    return _variables(_ASSIGNED.sub("", found)) <= _variables(answer)


def _functions(text: str) -> frozenset[str]:
    return FUNCTIONS & frozenset(_COMMAND.findall(text))


def _variables(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]", _COMMAND.sub("", _TEXT.sub("", text))))


def _powers_are_small(text: str) -> bool:
    """Whether exponents hold no power or fraction and their product is small, so that brackets build no tower either.

    Beside a logarithm every number acts as an exponent: algebra writes 10¹⁶ ln 2 as the logarithm of 2^(10¹⁶).
    """
    exponents = [inner or single for inner, single in _EXPONENT.findall(text)]
    if text.count("^") != len(exponents) or len(exponents) > POWERS or _TOWER.search(text):
        return False
    if any("." in exponent for exponent in exponents):
        return False
    product = math.prod(max(1, int(digits)) for exponent in exponents for digits in re.findall("[0-9]+", exponent))
    has_logarithm = not _functions(text).isdisjoint(("log", "ln"))
    return product <= PRODUCT and not (has_logarithm and product * len(re.findall("[0-9]", text)) > LOGARITHM_DIGITS)


BOX = "\\boxed{"
LENGTH = 200
"""Longest answer in characters; a longer one is not read."""
LONGEST_NUMBER = 30
_NUMBER = re.compile(r"(-?)\$?(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(\.[0-9]+)?(?:/([1-9][0-9]*))?", re.ASCII)
_FRAC = re.compile(r"(-?)\\frac\{([0-9]+)\}\{([1-9][0-9]*)\}", re.ASCII)
_DRESS = re.compile(r"(\\\\)|\\left|\\right|\\[!,;: ]|\\\$|[ \t\n$]")
"""Notation that is removed before comparing; the group, a line break of a matrix, is kept."""


def math_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 if the final answer of a completion equals ``answer``, else 0.

    Raises MissingExtraError without math-verify.
    """
    return [float(equal(final_answer(text_of(c)), a)) for c, a in zip(completions, answer, strict=True)]


def final_answer(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{}``, else of ``<answer>``, else after ``####``, or None; linear time."""
    if len(text) > READ:
        return None
    found = _boxed(text)
    if found is None:
        found = tagged(text)
    if found is None and "####" in text:
        found = text.rpartition("####")[2].strip().partition("\n")[0].strip()
    return found


def normalized_answer(text: str) -> str:
    """Return the normalized `final_answer` for majority votes, plain numbers as fractions; empty if there is none."""
    plain = undressed(final_answer(text) or "")
    value = number(plain)
    return plain if value is None else str(value)


def _boxed(text: str) -> str | None:
    _, box, rest = text.rpartition(BOX)
    depths = accumulate(((c == "{") - (c == "}") for c in rest[: LENGTH + 1]), initial=1)
    end = next((place for place, depth in enumerate(depths) if not depth), None)
    return rest[: end - 1].strip() if box and end else None


def equal(found: str | None, answer: str) -> bool:
    """Whether an answer equals the right one: as a string, as a plain number, or according to math-verify."""
    if not found or len(found) > LENGTH:
        return False
    plain, right = undressed(found), undressed(answer)
    if plain == right:
        return bool(plain)
    given, wanted = number(plain), number(right)
    if given is not None and wanted is not None:
        return given == wanted
    return bounded(found) and alike(found, answer) and _verified(found, answer)


def undressed(text: str) -> str:
    """Remove notation that makes no difference: blanks, dollars, size commands, percent and degree signs."""
    text = _DRESS.sub(lambda match: match[1] or "", text).rstrip(".")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return text.removesuffix("\\%").removesuffix("%").removesuffix("^\\circ").removesuffix("^{\\circ}")


def number(text: str) -> Fraction | None:
    r"""Parse a plain number like ``-1,234.50``, ``3/4`` or ``\frac{3}{4}`` exactly; None for any other text."""
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
    r"""Parse ``\boxed{text}`` with math-verify's LaTeX parser (its other parser calls eval); empty if that fails."""
    verifier = optional("math_verify", "comparing mathematical answers")
    # Both modules warn once that their time limits are off, which is intended.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    parsed: list[Any] = verifier.parse(
        f"{BOX}{text}}}", [verifier.LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed
