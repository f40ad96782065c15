"""JSON and YAML of others: every fault is one ValueError of one short line, and no text takes much time or memory."""

from __future__ import annotations

import math

import pytest
from typing_extensions import TypedDict

from seedtune.config.foreign_data import DEPTH, check_finite, conform, parse_json, parse_yaml, shown
from seedtune.errors import LONGEST, DataError

LAUGHS = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12))]
)
MERGES = "\n".join(
    ["a0: &a0 {x: 1, y: 2}", *(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 8)}]}}" for i in range(1, 12))]
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "nested more than 100 deep"),
        ("x: " + "[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("a: &a [*a]", "nested more than 100 deep"),
        ("seed: " + "9" * 5000, "limit (4300 digits)"),
        (LAUGHS, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        ("x" * 400_000, "400,000 characters"),
        ("!!timestamp x", "NoneType"),
        ("!!bool x", "x"),
        ("!!int ''", "invalid literal"),
        ("day: !!timestamp 2020-99-99", "month"),
        ("!!python/object:os.system x", "could not determine a constructor"),
        ("a: 'b", "unexpected end"),
        ("\x00", "unacceptable character"),
    ],
    ids=lambda text: text[:12],
)
def test_broken_yaml_is_one_short_error(text, why):
    with pytest.raises(ValueError, match=why.replace("(", r"\(").replace(")", r"\)")) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


def test_a_doubled_key_is_refused():
    with pytest.raises(ValueError, match="an object names 'b' twice"):
        parse_json('{"a": [{"b": 1, "c": 2, "b": 3}]}')


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 200 + "]" * 200, '{"a":' * 5000, "9" * 5000, "{", b"\xff", ""])
def test_broken_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"deep|digits|JSON|Expect|decode"):
        parse_json(text)


def test_sound_data_are_read_as_they_are():
    deepest = "[" * DEPTH + "]" * DEPTH
    assert parse_json(deepest) == parse_yaml(deepest)
    assert parse_json('{"a": [1, 2.5, null, "σ"]}') == {"a": [1, 2.5, None, "σ"]}
    assert parse_yaml("base: &b {x: 1}\nuse: {<<: *b, y: [*b, *b]}")["use"] == {"x": 1, "y": [{"x": 1}, {"x": 1}]}


class Place(TypedDict):
    count: int
    at: list[float]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"count": True, "at": []}, "count=True: must be a valid integer"),
        ({"count": "1", "at": []}, "count='1': must be a valid integer"),
        ({"count": 1, "at": [0.5, "x"]}, "at.1='x': must be a valid number"),
        ({"count": 1}, "at is missing"),
        (5, "it=5: must be a valid dictionary"),
    ],
    ids=str,
)
def test_values_of_another_type_are_named(value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        conform(value, Place)


def test_whole_numbers_are_numbers():
    assert conform({"count": 1, "at": [1]}, Place) == {"count": 1, "at": [1.0]}


@pytest.mark.parametrize("value", [math.inf, {"a": [math.nan]}, [[-math.inf]]], ids=str)
def test_infinity_and_nan_are_found_at_any_depth(value):
    with pytest.raises(ValueError, match="no finite number"):
        check_finite(value)


def test_values_are_shown_short():
    assert shown({"a": 1.5}) == "{'a': 1.5}"
    assert shown(10**5000) == "a number of about 4983 digits"
    assert len(shown(["x" * 10**6] * 100)) < 10_000


def test_an_error_that_quotes_a_whole_file_is_cut():
    message = str(DataError("x" * 10**6))
    assert len(message) < LONGEST + 50
    assert message.endswith("(1,000,000 characters)")
    assert str(DataError("short")) == "short"
