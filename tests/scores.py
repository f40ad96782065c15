"""Reward functions of tests.  The module imports nothing, so that a worker process that runs them starts at once."""

from __future__ import annotations


def small_letters(completions, **_):
    """The share of characters that are small letters."""
    return [sum(character.islower() for character in text) / max(1, len(text)) for text in completions]


def variety(completions, **_):
    return [float(len(set(text))) for text in completions]


def brevity(completions):
    return [-float(len(text)) for text in completions]


def closeness(completions, target, **_):
    return [-abs(float(text) - goal) for text, goal in zip(completions, target, strict=True)]


def matches(completions, answer, **_):
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def ends_right(completions, answer, **_):
    return [None if text == "?" else float(text.endswith(a)) for text, a in zip(completions, answer, strict=True)]


def brief(completions, **_):
    return [0.0 if len(text) < 4 else -1.0 for text in completions]


def one_character(completions, **_):
    return [float(len(text) == 1) for text in completions]


def number(completions: list[str]) -> list[float | None]:
    return [float(text) if text.strip() else None for text in completions]


def length(completions: list[str]) -> list[float | None]:
    return [float(len(text)) if text.strip() != "3" else None for text in completions]
