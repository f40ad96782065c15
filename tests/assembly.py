"""Reading the machine code of compiled functions: their innermost loops, and what these keep on the stack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LABEL = re.compile(r"^(\.?L[\w.$]+):")
JUMP = re.compile(r"^\s+j\w+\s+(\.?L[\w.$]+)")
STACK = re.compile(r"-?\d*\(%rsp\b")
ARITHMETIC = re.compile(r"^\s+(vfn?m(add|sub)\d*[ps]s|vdpbf16ps|v(mul|add|div|max)ps)\b")


def loops(assembly: str) -> Iterator[list[str]]:
    """The lines of every innermost loop: from a label to the jump back to it, with no such pair within."""
    lines = assembly.splitlines()
    labels = {found.group(1): number for number, line in enumerate(lines) if (found := LABEL.match(line))}
    spans = []
    for number, line in enumerate(lines):
        found = JUMP.match(line)
        if found and labels.get(found.group(1), number) < number:
            spans.append((labels[found.group(1)], number))
    for first, last in spans:
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in spans):
            yield lines[first : last + 1]


def vector_loops(function: Any, *signature: Any) -> list[list[str]]:
    """Innermost loops with vector arithmetic of a numba function compiled for ``signature``."""
    function.compile(signature)
    code = function.inspect_asm(signature)
    return [loop for loop in loops(code) if any(ARITHMETIC.match(line) for line in loop)]


def spills(loop: list[str]) -> int:
    """Instructions of a loop that read or write the stack."""
    return sum(bool(STACK.search(line)) for line in loop)


def written(loop: list[str]) -> int:
    """Instructions of a loop that write the stack."""
    return sum(bool(re.search(r",\s*-?\d*\(%rsp[^)]*\)\s*(#.*)?$", line)) for line in loop)
