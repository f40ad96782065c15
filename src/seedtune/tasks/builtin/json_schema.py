"""Answers in JSON that fit a schema, with partial credit.

The schemas are generated here, from a few fields to a nested object.  For example::

    Write a JSON object that describes a ship and fits this JSON schema:
    {"type": "object", "properties": {"level": {"type": "number", "exclusiveMinimum": 0, "maximum": 7}}, …}
    Answer with the JSON object only.

    {"level": 0.5}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from pydantic import Field

from seedtune.config.foreign_data import check_finite, found, parse_json
from seedtune.errors import RewardError, first_line
from seedtune.rewards.base import Reward, text_of
from seedtune.rewards.optional import optional
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import chat

LENGTH = 20_000
"""Longest answer in characters; a longer one is not read."""
FENCE = "```"


def json_marks(completions: Sequence[Any], schema: Sequence[str], **_: Any) -> list[float]:
    """Score each completion as JSON for a ``schema`` (a JSON string); a code fence around it is allowed.

    0.1 for JSON, 0.2 for an object, plus 0.6 · share of the required properties that are present and valid, plus 0.2
    if the whole is valid: 1 in total.  Raises MissingExtraError without jsonschema.
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
        value = parse_json(text)
        check_finite(value)
    except ValueError:
        return 0.0
    if not isinstance(value, dict):
        return 0.1
    validator = _validator(schema)
    try:
        if validator.is_valid(value):
            return 1.0
        properties, required = validator.schema.get("properties", {}), validator.schema.get("required", [])
        right = [
            name in value and validator.evolve(schema=properties.get(name, {})).is_valid(value[name])
            for name in required
        ]
    except ArithmeticError:  # a whole number of thousands of digits, divided
        return 0.2
    except (
        RecursionError,
        ValueError,
        optional("referencing.exceptions", "the task json_schema").Unresolvable,
    ) as error:
        raise RewardError(f"the schema {schema[:200]!r} cannot be used: {first_line(error)}. Mend it.") from error
    return 0.2 + 0.6 * (sum(right) / len(right) if right else 1.0)


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    """Return the validator of a schema.  References lead to the schema itself or the standard, never to files or hosts.

    Raises RewardError if it is no JSON schema.
    """
    library = optional("jsonschema", "the task json_schema")
    known = optional("jsonschema_specifications", "the task json_schema").REGISTRY
    patterns = {"pattern": _pattern, "patternProperties": _pattern_properties}
    kind = library.validators.extend(library.Draft202012Validator, patterns)
    try:
        made = parse_json(schema)
        kind.check_schema(made)
    except (ValueError, RecursionError, library.SchemaError) as error:
        raise RewardError(f"the schema {schema[:200]!r} is no JSON schema: {first_line(error)}. Mend it.") from error
    if not isinstance(made, dict):
        raise RewardError(f"the schema {schema[:200]!r} is no object. Give a JSON schema of an object.")
    return kind(made, registry=known)


def _pattern(validator: Any, pattern: str, value: Any, _: Any) -> Iterator[Exception]:
    """Check ``pattern`` within a time limit, in place of jsonschema's own check."""
    if isinstance(value, str) and not found(pattern, value):
        yield optional("jsonschema", "the task json_schema").ValidationError(f"{pattern!r} does not match")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, _: Any) -> Iterator[Exception]:
    for pattern, schema in patterns.items() if isinstance(value, dict) else ():
        for name in value:
            if found(pattern, name):
                yield from validator.descend(value[name], schema, path=name, schema_path=pattern)


THINGS = ("book", "city", "recipe", "planet", "song", "garden", "ship", "museum", "bicycle", "language")
FIELDS = (
    "name", "code", "size", "weight", "colour", "owner", "rating", "price", "count", "active", "tags", "scores",
    "origin", "status", "level", "note", "year", "maker",
)  # fmt: skip
WORDS = ("red", "green", "north", "south", "small", "large", "new", "old", "open", "closed")
QUESTION = (
    "Write a JSON object that describes a {thing} and fits this JSON schema:\n{schema}\n"
    "Answer with the JSON object only."
)


class JsonSettings(Sizes):
    """Settings of the generated schemas."""

    fields: int = Field(default=5, ge=1, le=8)
    """Most properties of an object."""


@dataclass(frozen=True, slots=True)
class Property:
    """A schema and a value that fits it."""

    schema: dict[str, Any]
    value: Any


def json_schema(settings: JsonSettings) -> Task:
    """Create prompts that ask for JSON of a schema; stepwise reward, 1 for a valid object (see `json_marks`)."""
    optional("jsonschema", "the task json_schema")
    return Task(
        "json_schema",
        *splits("json_schema", settings, partial(_row, settings.fields), lambda row: row["schema"]),
        rewards=(Reward("schema", json_marks),),
        gold=lambda example: str(example.columns["example"]),
        full_marks=1.0,
    )


def _row(fields: int, draws: Draws) -> DataRow:
    made = _object(draws, fields, nested=draws.below(3) == 0)
    question = QUESTION.format(thing=draws.choice(THINGS), schema=json.dumps(made.schema, indent=1))
    return {"prompt": chat(question), "schema": json.dumps(made.schema), "example": json.dumps(made.value)}


def _object(draws: Draws, fields: int, *, nested: bool) -> Property:
    """Generate an object of up to ``fields`` required properties, and an object inside it if ``nested``."""
    made = {name: _leaf(draws) for name in draws.sample(FIELDS, draws.between(1, fields))}
    if nested:
        made["details"] = _object(draws, min(2, fields), nested=False)
    schema = {
        "type": "object",
        "properties": {name: part.schema for name, part in made.items()},
        "required": list(made),
        "additionalProperties": False,
    }
    return Property(schema, {name: part.value for name, part in made.items()})


def _leaf(draws: Draws) -> Property:
    """Generate one property: string, integer, number, boolean, enum or array."""
    least = draws.between(1, 50)
    words = draws.sample(WORDS, 3)
    return draws.choice(
        (
            Property({"type": "string", "minLength": 1, "maxLength": 10 + least}, words[0]),
            Property({"type": "integer", "minimum": least, "maximum": least + 20}, least + 1),
            Property({"type": "number", "exclusiveMinimum": 0, "maximum": least}, 0.5),
            Property({"type": "boolean"}, True),
            Property({"enum": words}, words[1]),
            Property({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 4}, [least, 2]),
            Property({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}, words[:2]),
        )
    )


KIND = TaskKind(
    build=json_schema,
    settings=JsonSettings,
    what="JSON that fits a schema",
    reward="0.1 JSON … 1 valid",
    sizes=(2000, 200),
    needs=("jsonschema",),
)
