"""Damaged bytes, absurd JSON data and texts that mean something to parsers, from random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seedtune.run import sealing

ABSURD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**70), 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e300, -1e308, "", "x", "NaN", "9" * 30, "é\x1b[2J", "a" * 5000, "../..", "a\0b", "\ud800"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3], {"a": [1]}),
)
WORDS = (
    *("{", "}", "[", "]", "(", ")", ",", ":", '"', "'", "\\", "\n", " ", "-", "+", "*", "/", "^", "_", "#", "&a", "*a"),
    *("0", "1", "-1", "1e999", "9" * 400, "9" * 5000, "NaN", "null", "true", "0x1", "1_0", "٣", "½", "\ud800", "\x00"),
    *("<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "\\frac", "\\sqrt", "\\left(", "####", "$", "%", "!"),
    *("<tool_call>", "</tool_call>", "answer is", "A)", "(B", "score", '{"score": 3}', '{"name": "f", "arguments": {}'),
    *(
        "!!int",
        "!!timestamp",
        "<<:",
        "- ",
        "? ",
        "%YAML",
        "---",
        "sigma: ",
        "stop=",
        "8xa100",
        "vllm=2",
        "out of",
        "**",
    ),
    *("a" * 300, " " * 300, "**", ">", "|", "🙂", "}"),
)


def pick(draw: np.random.Generator, items: Sequence[Any]) -> Any:
    """One of the items."""
    return items[int(draw.integers(0, len(items)))]


def text(draw: np.random.Generator) -> str:
    """A soup of words that mean something to some parser, sometimes one of them very often."""
    if draw.random() < 0.1:
        word = pick(draw, WORDS)
        return word * int(draw.integers(1, max(2, 300_000 // len(word))))
    return "".join(pick(draw, WORDS) for _ in range(int(draw.integers(0, 40))))


def damaged(raw: bytes, draw: np.random.Generator) -> bytes:
    """Bytes with flipped bits, cut off, or with a part removed, doubled or replaced."""
    kind, size = int(draw.integers(0, 5)), len(raw)
    start, end = sorted(int(place) for place in draw.integers(0, size + 1, 2))
    if kind == 0:
        changed = bytearray(raw)
        for place in draw.integers(0, size, int(draw.integers(1, 9))) if size else ():
            changed[place] ^= 1 << int(draw.integers(0, 8))
        return bytes(changed)
    if kind == 1:
        return raw[:end]
    middle = (b"", raw[start:end] * 2, text(draw).encode("utf-8", "surrogatepass"))[kind - 2]
    return raw[:start] + middle + raw[end:]


def absurd(data: Any, draw: np.random.Generator) -> Any:
    """JSON data in which one value, anywhere, is replaced, removed or doubled."""
    inside = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    if not inside or draw.random() < 0.2:
        return pick(draw, ABSURD)
    key, value = pick(draw, inside)
    if isinstance(data, dict):
        if draw.random() < 0.15:
            return {name: one for name, one in data.items() if name != key}
        return {**data, key: absurd(value, draw)}
    return [*data[:key], *([] if draw.random() < 0.15 else [absurd(value, draw)]), *data[key + 1 :]]


def resealed(lines: list[dict[str, Any]]) -> bytes:
    """A ledger of these lines with good checksums."""
    whole, check = b"", ""
    for line in lines:
        sealed, check = sealing.seal({key: value for key, value in line.items() if key != "check"}, check)
        whole += sealed
    return whole
