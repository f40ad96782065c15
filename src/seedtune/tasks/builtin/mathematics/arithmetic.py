"""Evaluate arithmetic in model output exactly, with a small parser and never eval.

Grammar, ignoring blanks (space, tab, newline) between tokens::

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = ["-"] (number | "(" sum ")")
    number  = "0" | digit other than 0, digits        ASCII only, at most ``DIGITS``

Values are rational numbers.  There is no power, no implicit product, no unary plus and no second minus sign before a
factor.  Text longer than ``LENGTH``, nesting deeper than ``DEPTH`` and division by zero have no value.  The parser
uses explicit stacks, so that nesting cannot exhaust Python's call stack.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

LENGTH, DEPTH, DIGITS = 256, 16, 9
OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}
_TOKEN = re.compile(r"[ \t\r\n]*([0-9]+|[-+*/()])")


class _NoValueError(Exception):
    """Raised if the text is not an expression or has no value."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The value of an expression, and the numbers in it from left to right."""

    value: Fraction
    numbers: tuple[int, ...]


def value_of(text: str) -> Arithmetic | None:
    """Evaluate an expression; None if it is malformed, too long or too deep, or divides by zero."""
    if len(text) > LENGTH:
        return None
    machine = _Machine()
    try:
        for token in _tokens(text.rstrip(" \t\r\n")):
            machine.take(token)
        return machine.end()
    except _NoValueError:
        return None


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise _NoValueError
        tokens.append(found[1])
        place = found.end()
    return tokens


@dataclass(slots=True)
class _Machine:
    """A shunting-yard parser with a stack of values and a stack of pending operators."""

    values: list[Fraction] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    depth: int = 0
    wants_factor: bool = True

    def take(self, token: str) -> None:
        if self.wants_factor:
            self._factor(token)
        else:
            self._after_factor(token)

    def _factor(self, token: str) -> None:
        if token.isdigit():
            self._number(token)
        elif token == "(":
            self.depth += 1
            if self.depth > DEPTH:
                raise _NoValueError
            self.pending.append("(")
        elif token == "-" and (not self.pending or self.pending[-1] != "negative"):
            self.pending.append("negative")
        else:
            raise _NoValueError

    def _number(self, token: str) -> None:
        if len(token) > DIGITS or (token[0] == "0" and len(token) > 1):
            raise _NoValueError
        self.numbers.append(int(token))
        self.values.append(Fraction(int(token)))
        self.wants_factor = False

    def _after_factor(self, token: str) -> None:
        if token == ")":
            self._reduce(0)
            if not self.pending:
                raise _NoValueError
            self.pending.pop()
            self.depth -= 1
        elif token in BINDING:
            self._reduce(BINDING[token])
            self.pending.append(token)
            self.wants_factor = True
        else:
            raise _NoValueError

    def _reduce(self, binding: int) -> None:
        """Apply pending operators with at least this ``binding``, back to an open parenthesis."""
        while self.pending and self.pending[-1] != "(" and BINDING[self.pending[-1]] >= binding:
            self._apply(self.pending.pop())

    def _apply(self, word: str) -> None:
        right = self.values.pop()
        if word == "negative":
            self.values.append(-right)
            return
        left = self.values.pop()
        if word == "/" and not right:
            raise _NoValueError
        self.values.append(OPERATIONS[word](left, right))

    def end(self) -> Arithmetic:
        if self.wants_factor:
            raise _NoValueError
        self._reduce(0)
        if self.pending:
            raise _NoValueError
        return Arithmetic(self.values[0], tuple(self.numbers))
