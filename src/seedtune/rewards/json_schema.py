"""JSON that fits a JSON schema, with marks for coming near."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from seedtune.rewards.completions import text_of
from seedtune.rewards.optional import optional

LENGTH = 20_000
"""Characters of an answer; a longer one is not read."""
FENCE = "```"


def json_marks(completions: Sequence[Any], schema: Sequence[str], **_: Any) -> list[float]:
    """Marks for JSON by a ``schema`` (itself JSON text); a code fence around it is allowed.

    0.1 if it is JSON, 0.2 if it is an object, then 0.6 · share of the required properties that are there and valid,
    then 0.2 if all is valid: together 1.  MissingExtraError without jsonschema.
    """
    return [_marks(_unfenced(text_of(c)), made) for c, made in zip(completions, schema, strict=True)]


def _unfenced(text: str) -> str:
    text = text[: LENGTH + 1].strip()
    if text.startswith(FENCE) and text.endswith(FENCE) and text.count(FENCE) == 2:
        return text.removesuffix(FENCE).partition("\n")[2].strip()
    return text


def _marks(text: str, schema: str) -> float:
    if not text or len(text) > LENGTH:
        return 0.0
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(value, dict):
        return 0.1
    validator = _validator(schema)
    required = validator.schema.get("required", [])
    right = [name in value and _fits(schema, name, value[name]) for name in required]
    share = sum(right) / len(right) if right else 1.0
    return 1.0 if validator.is_valid(value) else 0.2 + 0.6 * share


def _refuse(word: str) -> None:
    """``NaN`` and ``Infinity`` are Python's, not JSON's."""
    raise ValueError(word)


def _fits(schema: str, name: str, value: Any) -> bool:
    validator = _validator(schema)
    fits: bool = validator.evolve(schema=validator.schema.get("properties", {}).get(name, {})).is_valid(value)
    return fits


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    return optional("jsonschema", "the task json_schema").Draft202012Validator(json.loads(schema))
