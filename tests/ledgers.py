"""Ledgers for tests: a header, records that are hard to write exactly, and files of both."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from seedtune.run.ledger import Ledger
from seedtune.run.records import Header, Record
from seedtune.types import Member, Plan

HEADER = Header(
    seedtune="0.1.0",
    noise="v1",
    model="toy",
    data="",
    prompts="",
    resolved_weights_dtype="float32",
    arithmetic={},
    base_fingerprint="0" * 32,
    tokenizer_fingerprint="",
    config={"sigma": 0.1, "toy": {"size": 3}},
)


def record(generation: int, **changes) -> Record:
    members = (Member(generation, 0, 1), Member(generation, 0, -1), Member(3, 9, 1))
    made = Record(
        plan=Plan(generation, 1 / 3, members),
        alpha=1e-300,
        rewards=(0.1 + 0.2, math.nan, -0.0),
        coefficients=(5e-324, -1.7976931348623157e308, 0.0),
        prompts=(3, 1, 2),
        reward_unperturbed=2 / 3,
        tokens={"prompt": 7, "generated": 9},
        state={"σ": [0.1, {"k": None}]},
    )
    return replace(made, **changes)


def begun(path, header) -> Ledger:
    """A ledger with a header, open until it is closed."""
    book = Ledger(path)
    book.begin(header)
    return book


def write(path: Path, generations: int = 3) -> bytes:
    book = begun(path, HEADER)
    for generation in range(generations):
        book.append(record(generation))
        if generation % 2:
            book.note(generation + 1, fingerprint=f"{generation:032x}")
    book.close()
    return path.read_bytes()
