"""Rewards of single tasks: grids, JSON, instructions, letters."""

from __future__ import annotations

import json
import time

import pytest

from seedtune.errors import MissingExtraError, RewardError
from seedtune.rewards.optional import optional
from seedtune.tasks.builtin import instruction_format, multiple_choice
from seedtune.tasks.builtin.grids import grid_of, obeys_rules, same_grid, sudoku_solved
from seedtune.tasks.builtin.instruction_format import CHECKS, instructions_followed
from seedtune.tasks.builtin.json_schema import json_marks
from seedtune.tasks.builtin.multiple_choice import chosen, letter_right

# ---------------------------------------------------------------------------- grids

SOLUTION = [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
PUZZLE = [[1, 2, 3, 4], [3, 4, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
OTHER = [[1, 2, 3, 4], [3, 4, 1, 2], [2, 3, 4, 1], [4, 1, 2, 3]]


def written(grid) -> str:
    return "<answer>" + "\n".join(" ".join(map(str, row)) for row in grid) + "</answer>"


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("1 2\n3 4", [[1, 2], [3, 4]]),
        (" [1, 2],\n[3, 4] ", [[1, 2], [3, 4]]),
        ("1|2\n3|4", [[1, 2], [3, 4]]),
        ("1 2\n3", None),
        ("1 _\n3 4", None),
        ("a", None),
        ("", None),
        (None, None),
        ("٣ 1", None),
        ("1 " * 20_000, None),
    ],
)
def test_a_grid_is_lines_of_numbers(text, grid):
    assert grid_of(text) == grid


def test_a_sudoku_is_judged_by_its_rules_not_by_one_solution():
    assert obeys_rules(SOLUTION)
    assert obeys_rules(OTHER)
    assert sudoku_solved([written(SOLUTION), written(OTHER)], [PUZZLE] * 2, [SOLUTION] * 2) == [1.0, 1.0]


def test_a_sudoku_that_changes_a_clue_or_its_shape_gets_nothing():
    changed = [[2, 1, 3, 4], *SOLUTION[1:]]
    answers = [written(changed), written(SOLUTION[:3]), "1 2 3 4", "<answer></answer>", ""]
    assert sudoku_solved(answers, [PUZZLE] * 5, [SOLUTION] * 5) == [0.0] * 5


def test_a_sudoku_with_wrong_cells_gets_half_the_share_of_right_ones():
    ones = [*SOLUTION[:2], [1] * 4, [1] * 4]
    assert sudoku_solved([written(ones)], [PUZZLE], [SOLUTION]) == [0.5 * 2 / 8]


def test_a_grid_of_the_right_shape_gets_a_tenth():
    found = same_grid([written([[1, 2]]), written([[1, 1]]), written([[1], [2]]), "1 2"], [[[1, 2]]] * 4)
    assert found == [1.0, 0.1, 0.0, 0.0]


# ----------------------------------------------------------------------------- JSON

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"type": "string"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ('{"a": 3, "b": "x"}', 1.0),
        ('```json\n{"a": 3, "b": "x"}\n```', 1.0),
        ('{"a": 3, "b": "x", "c": 1}', 0.8),
        ('{"a": 2, "b": "x"}', 0.5),
        ('{"a": 3}', 0.5),
        ("{}", 0.2),
        ("[1]", 0.1),
        ("5", 0.1),
        ('{"a": NaN, "b": "x"}', 0.0),
        ('Here: {"a": 3, "b": "x"}', 0.0),
        ("[" * 15_000, 0.0),
        ('{"a": ' + "9" * 10_000 + "}", 0.0),
        (" " * 30_000, 0.0),
        ("", 0.0),
    ],
    ids=lambda value: str(value)[:30],
)
def test_json_earns_marks_by_steps(text, marks):
    assert json_marks([text], [SCHEMA]) == [pytest.approx(marks)]


# --------------------------------------------------------------------- instructions


@pytest.mark.parametrize(
    ("name", "value", "follows", "breaks"),
    [
        ("bullets", 2, "- a\n- b", "- a\n- b\n- c"),
        ("bullets", 1, "Well:\n* one", "*one"),
        ("bullets", 1, "• one", "- \n-"),
        ("lower_case", True, "all small 5", "All"),
        ("upper_case", True, "ALL", "all"),
        ("ends_with", "the end", "So. The end \n", "the end."),
        ("starts_with", "in short", "- In short, yes", "Yes, in short"),
        ("word_count", 3, "one - two, three", "one two"),
        ("keywords", ["sea", "Sky"], "sky; SEA", "seaside sky"),
        ("no_commas", True, "a b", "a, b"),
    ],
)
def test_an_instruction_is_followed_or_not(name, value, follows, breaks):
    assert CHECKS[name](follows, value)
    assert not CHECKS[name](breaks, value)


@pytest.mark.parametrize("name", CHECKS)
def test_an_empty_answer_follows_no_instruction(name):
    values = {"bullets": 2, "word_count": 3, "keywords": ["x"], "ends_with": "a", "starts_with": "a"}
    assert not CHECKS[name]("", values.get(name, True))


def test_the_reward_is_the_share_of_instructions_followed():
    wanted = {"lower_case": True, "word_count": 2, "keywords": None}
    assert instructions_followed(["a b", "a", "A B C", ""], [wanted] * 4) == [1.0, 0.5, 0.0, 0.0]
    assert instructions_followed(["a" * (instruction_format.LENGTH + 1)], [{"lower_case": True}]) == [0.0]


def test_an_instruction_that_does_not_exist_is_named():
    with pytest.raises(RewardError, match=r"unknown instruction 'bulets'\. Did you mean 'bullets'"):
        instructions_followed(["a"], [{"bulets": 2}])


# -------------------------------------------------------------------------- letters

CHOICES = ["Paris", "Rome", "Bern", "A dog"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(C)", 2),
        ("**B**", 1),
        ("B)", 1),
        ("B.", 1),
        ("B) Rome", 1),
        ("The answer is B.", 1),
        ("The answer is **B**", 1),
        ("Answer: (C) Bern", 2),
        ("the correct choice is D, I think", 3),
        ("Is the answer A? No, the answer is C.", 2),
        ("I think so. <answer> A </answer>", 0),
        ("<answer>Rome</answer>", 1),
        ("Rome", 1),
        ("a dog.", 3),
        ("A) Paris\nB) Rome\nC) Bern", None),
        ("A B C D", None),
        ("The answer is A dog", None),
        ("E", None),
        ("The answer is not clear", None),
        ("Because of that", None),
        ("", None),
        ("B" + " " * multiple_choice.LENGTH, None),
    ],
)
def test_the_letter_an_answer_settles_on_is_found(text, index):
    assert chosen(text, CHOICES) == index


def test_the_letter_earns_the_mark():
    message = [{"role": "assistant", "content": "B"}]
    assert letter_right(["B", "A", message], [CHOICES] * 3, [1, 1, 1]) == [1.0, 0.0, 1.0]


# ------------------------------------------------------------------------- packages


@pytest.mark.parametrize(
    ("module", "extra"),
    [("jsonschema", "tasks"), ("math_verify", "tasks"), ("reasoning_gym", "tasks"), ("datasets", "data")],
)
def test_a_package_that_is_missing_says_how_to_install_it(monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"x needs a package .* pip install 'seedtune\[{extra}\]'"):
        optional(module, "x")


def fits(schema: object, value: object) -> float:
    return json_marks([json.dumps(value)], [json.dumps(schema)])[0]


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x.json", "https://example.org/s", "file:///etc/hostname"])
def test_references_of_a_schema_are_never_fetched(monkeypatch, place):
    def opened(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", opened)
    monkeypatch.setattr("socket.create_connection", opened)
    with pytest.raises(RewardError, match=r"the schema .* cannot be used: .*Mend it"):
        fits({"properties": {"a": {"$ref": place}}}, {"a": 1})


def test_references_into_the_schema_itself_and_the_standard_are_followed():
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]}
    assert fits(schema, {"a": 1}) == 1.0
    assert fits(schema, {"a": "x"}) == pytest.approx(0.2)
    standard = {"properties": {"a": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}, "required": ["a"]}
    assert fits(standard, {"a": {"type": "string"}}) == 1.0
    assert fits(standard, {"a": {"type": "strings"}}) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"type": 5}, [], 5, {"properties": 5}, {"pattern": 7}, {"properties": {"a": {"pattern": "("}}}],
)
def test_a_schema_that_is_none_is_one_line(schema):
    with pytest.raises(RewardError, match=r"the schema .*(Mend it|no object)"):
        fits(schema, {"a": "x"})


def test_a_schema_that_is_no_json_is_one_line():
    for schema in ("{", "[" * 5000, '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(RewardError, match="is no JSON schema"):
            json_marks(["{}"], [schema])


def test_a_pattern_of_a_schema_is_checked_within_a_time_limit():
    started = time.process_time()
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a|aa)+$"}}, "required": ["a"]}
    assert fits(schema, {"a": "aaa"}) == 1.0
    with pytest.raises(RewardError, match=r"takes over 0.5 s"):
        fits(schema, {"a": "a" * 5000 + "b"})
    assert fits({"patternProperties": {"^b": {"type": "integer"}}}, {"b1": 1, "a": "x"}) == 1.0
    assert fits({"patternProperties": {"^b": {"type": "integer"}}}, {"b1": "x"}) == pytest.approx(0.8)
    assert time.process_time() - started < 30


def test_numbers_of_thousands_of_digits_score_and_do_not_raise():
    schema = json.dumps({"properties": {"a": {"type": "number", "multipleOf": 0.01}}, "required": ["a"]})
    assert json_marks(['{"a": ' + "9" * 4000 + "}"], [schema])[0] <= 1.0
    assert json_marks(['{"a": 1e999}', '{"a": NaN}'], [schema] * 2) == [0.0, 0.0]
