"""Data from elsewhere: JSON and YAML parsed within limits, and checked against a type.

Run folders, packs, checkpoints, data sets and replies of models come from strangers.  Whatever is wrong with their text
or its values is one ValueError, whose message is one short line.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, NotRequired, TypeVar, get_type_hints

import regex
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from seedtune.types import STEPS

T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**32)]
GenerationCount = Annotated[int, Field(ge=0, le=STEPS)]
"""Types of values in files; a count, a generation and a pair are words of 32 bits in the address of noise."""

DEPTH = 100
"""Most brackets around a value.  Python follows nested data by recursion, to a depth of about a thousand calls."""

ITEMS = 100_000
"""Most values of a YAML document, where an alias counts as what it stands for: lines of aliases stand for gigabytes."""

LENGTH = 300_000
"""Most characters of a YAML document: PyYAML takes a second for a hundred thousand."""

MATCH_SECONDS = 0.5
"""Seconds of the processor that a pattern may take."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxdict, _SHOWN.maxlist, _SHOWN.maxtuple = 4, 20, 20, 20
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = 200

_BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""Errors of PyYAML for broken text; all but the first two come from constructors, as for ``!!timestamp x``."""


def single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the (key, value) pairs of a JSON object as a dictionary; raise ValueError for a doubled key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object names {shown(twice)} twice")
    return found


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not JSON, nested more than `DEPTH` deep, or holds a doubled key (of which readers choose
            different ones) or a number of thousands of digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=single_keys)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    check_size(value, items=len(text) + 1)
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the words and numbers of YAML 1.2, within limits.

    ``yes``, ``010`` (octal in YAML 1.1), ``1:30`` (90 there) and dates are text.  A doubled key is an error.
    PyYAML's time grows with the square of the number of open brackets, and merges of aliases (``<<: [*a, *a]``)
    multiply: both are limited.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; raise ValueError for a doubled key."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {shown(key.value)} is there twice")
                seen.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: Any) -> int:
        """Read a whole number; also one that is tagged ``!!int`` is read as in YAML 1.2."""
        return int(self.construct_scalar(node), 0)

    def construct_yaml_float(self, node: Any) -> float:
        """Read a number, as `construct_yaml_int` does."""
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))

    def fetch_flow_collection_start(self, token: Any) -> None:
        super().fetch_flow_collection_start(token)
        if self.flow_level > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > ITEMS:
            raise ValueError(f"it holds more than {ITEMS:,} values")


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes text that means something else in YAML 1.1 or in YAML 1.2."""


def _add_words_of_yaml_1_2() -> None:
    _Loader.yaml_implicit_resolvers = {}
    tag, number = "tag:yaml.org,2002:", list("-+.0123456789")
    sign, whole = "[-+]?", "(?:0|[1-9][0-9]*)"
    infinite = rf"{sign}\.(?:inf|Inf|INF)|\.nan|\.NaN|\.NAN"
    for name, pattern, first in (
        ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", f"{sign}{whole}|0o[0-7]+|0x[0-9a-fA-F]+", number),
        ("float", rf"{sign}(?:\.[0-9]+|{whole}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|{infinite}", number),
        ("merge", "<<", ["<"]),
    ):
        for kind in (_Loader, _Dumper):
            kind.add_implicit_resolver(tag + name, re.compile(f"(?:{pattern})\\Z"), first)
    _Loader.add_constructor(f"{tag}int", _Loader.construct_yaml_int)
    _Loader.add_constructor(f"{tag}float", _Loader.construct_yaml_float)


_add_words_of_yaml_1_2()


def dump_yaml(value: Any) -> str:
    """Format plain data as YAML that `parse_yaml`, and readers of YAML 1.1, read back as they were."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False)
    return text


def parse_scalar(text: str) -> Any:
    """Read a number or word (``true``, ``null``) of YAML 1.2; return anything else as the text it is."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    with suppress(ValueError, yaml.YAMLError):  # thousands of digits; the sign of a merge
        return loader.construct_object(yaml.ScalarNode(tag, text))
    return text


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: It is not YAML, longer than `LENGTH`, nested more than `DEPTH` deep, or its aliases stand for more
            than `ITEMS` values.
    """
    if len(text) > LENGTH:
        raise ValueError(f"it has {len(text):,} characters, more than {LENGTH:,}")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    except _BROKEN as error:
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from error
    check_size(value, items=ITEMS)
    return value


def found(pattern: str, text: str) -> list[Any]:
    """Return every match of a user's pattern, as ``re.findall`` does, within `MATCH_SECONDS`.

    Other threads go on meanwhile: Python's own ``re`` would hold them up, for hours with a pattern like ``(a+)+b``.

    Raises:
        ValueError: The pattern is no regular expression, or takes too long.
    """
    try:
        return list(regex.findall(pattern, text, timeout=MATCH_SECONDS, concurrent=True))
    except TimeoutError:
        raise ValueError(f"the pattern {shown(pattern)} takes over {MATCH_SECONDS:g} s") from None
    except regex.error as error:
        raise ValueError(f"the pattern {shown(pattern)} is no regular expression: {error}") from None


def check_finite(value: Any) -> None:
    """Raise ValueError for infinity and NaN anywhere in plain data: no JSON line can hold them."""
    inside = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in inside:
        check_finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds {value}, which is no finite number: leave it out")


def check_size(value: Any, *, items: int) -> None:
    """Raise ValueError if data are nested too deep or have too many values, each counted wherever it stands."""
    level, count = [value], 1
    for _ in range(DEPTH):
        inside: list[Any] = []
        for part in level:
            held = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ()
            count += len(held)
            if count > items:
                raise ValueError(f"it holds more than {items:,} values")
            inside += (each for each in held if isinstance(each, dict | list))
        if not inside:
            return
        level = inside
    raise ValueError(f"it is nested more than {DEPTH} deep")


def conform(value: Any, kind: type[T]) -> T:
    """Return parsed JSON as a value of ``kind``, a TypedDict or a dataclass; nothing but whole numbers is converted.

    Raises:
        ValueError: It is of another type; the message names the place.
    """
    try:
        checked = _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    made: T = kind(**checked) if is_dataclass(kind) else checked
    return made


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type, made once; a dataclass is a mapping of its fields in JSON."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(_mapping(kind) if is_dataclass(kind) else kind)
    return _ADAPTERS[kind]


def _mapping(kind: Any) -> Any:
    """Return the TypedDict of a dataclass: fields with a default may be missing."""
    hints = get_type_hints(kind, include_extras=True)
    given = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    return TypedDict(kind.__name__, {n: h if n in given else NotRequired[h] for n, h in hints.items()})  # type: ignore[operator]


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a validation as: place, value and what is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"])) or "it"
    if first["type"] == "missing":
        return f"{place} is missing"
    return f"{place}={shown(first['input'])}: {first['msg'].replace('Input should be', 'must be')}"


def shown(value: Any) -> str:
    """Return ``repr(value)``, shortened where it would be long."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a number of about {value.bit_length() * 3 // 10} digits" if isinstance(value, int) else "huge numbers"
