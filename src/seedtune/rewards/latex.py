"""LaTeX that computer algebra may see: short, of known commands, with small powers, of the kind of the right answer.

sympy has no limits of its own.  What is refused here was found by letting it compare thousands of random answers:
towers of powers, long products of symbols, infinity in arithmetic, and large numbers beside logarithms took it minutes.
"""

from __future__ import annotations

import math
import re

DEPTH, POWERS, PRODUCT, DIGITS = 8, 6, 64, 15
"""Nested brackets, powers, the product of their exponents, and digits of a number that math-verify may see."""
COMMANDS = frozenset(
    re.findall(
        "[a-z]+",
        "dfrac tfrac sqrt pi cdot times div left right text mathrm infty infinity cup cap in le ge leq geq lt gt ne "
        "frac pm mp circ degree begin end pmatrix matrix bmatrix cases sin cos tan cot sec csc arcsin arccos arctan "
        "log ln neq theta alpha beta gamma phi lambda omega mu sigma angle triangle emptyset varnothing mathbb mathbf "
        "quad langle rangle lfloor rfloor lceil rceil displaystyle ldots dots sim mid",
    )
)
LOGARITHM_DIGITS = 8
"""Digits of all numbers beside a logarithm, times the exponents' product."""
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_EXPONENT = re.compile(r"\^ *(?:\{([^{}^]*)\}|([0-9]+|[^{}^]))")
_TEXT = re.compile(r"\\(?:text|mathrm|begin|end)\{[^{}]*\}")
_ASSIGNED = re.compile(r"^ *[a-zA-Z] *(?:=|\\in\b)")
_INTERVALS = re.compile(
    r"(?:[a-zA-Z] *\\in\b)?(?:[0-9()\[\]{},./ -]|\\(?:infty|infinity|cup|left|right|frac|sqrt|pi)\b)*"
)
FUNCTIONS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln"})
SLACK = 40
"""Characters that an answer may have beyond twice those of the right one."""
_TOWER = re.compile(r"\^ *(?:\{[^{}]*\}|[0-9]+|[^{}]) *\^|\\sqrt *\[(?! *[2-9] *\])")
"""A power of a power without brackets, or a root that is not the second to ninth."""


def bounded(text: str) -> bool:
    """Whether computer algebra on this LaTeX must be quick: known commands, small numbers and powers, few brackets."""
    if (
        not text.isascii()
        or not text.isprintable()
        or "!" in text
        or "**" in text
        or text.count("{") != text.count("}")
    ):
        return False
    if any(command not in COMMANDS for command in _COMMAND.findall(text)):
        return False
    if any(len(digits) > DIGITS for digits in re.findall("[0-9.,]+", text)):
        return False
    return _nesting(text) <= DEPTH and text.count("\\sqrt") <= 3 and _powers_are_small(text)


def alike(found: str, answer: str) -> bool:
    """Whether an answer is of a kind with the right one: not much longer, no other variables, no other functions.

    Algebra is quick to find such answers equal or not; others are wrong, or far from simplified.
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


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _powers_are_small(text: str) -> bool:
    """No power or fraction in an exponent, and no tower by brackets either: the exponents' product is what counts.

    Beside a logarithm every number is one exponent more: algebra writes 10¹⁶ ln 2 as the logarithm of 2^(10¹⁶).
    """
    exponents = [inner or single for inner, single in _EXPONENT.findall(text)]
    if text.count("^") != len(exponents) or len(exponents) > POWERS or _TOWER.search(text):
        return False
    if any("." in exponent for exponent in exponents):
        return False
    product = math.prod(max(1, int(digits)) for exponent in exponents for digits in re.findall("[0-9]+", exponent))
    logarithm = _functions(text) & {"log", "ln"}
    return product <= PRODUCT and not (logarithm and product * len(re.findall("[0-9]", text)) > LOGARITHM_DIGITS)
