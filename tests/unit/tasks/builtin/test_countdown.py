"""The countdown reward's arithmetic: exact against an oracle of rational numbers, and indifferent to hostile text."""

from __future__ import annotations

import ast
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.rewards.answer_tags import READ, format_marks, format_reward, tagged
from seedtune.tasks.builtin.countdown import DEPTH, DIGITS, LENGTH, right_equation, value_of

OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def oracle(node: ast.expr) -> Fraction:
    """Python's own parser and rational arithmetic; ZeroDivisionError, or KeyError for what is no arithmetic."""
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub()):
            return -oracle(node.operand)
        case ast.BinOp():
            return OPERATIONS[type(node.op)](oracle(node.left), oracle(node.right))
    raise KeyError(ast.dump(node))


def expected(text: str) -> Fraction | None:
    try:
        return oracle(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError, AttributeError):
        return None


numbers = st.integers(0, 999).map(str)
trees = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: "({} {} {})".format(*parts)),
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"(-{text})" if not text.startswith("-") else text),
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=300)
def test_every_expression_has_the_value_that_rational_arithmetic_gives_it(text):
    found = value_of(text)
    if len(text) <= LENGTH and "--" not in text:
        assert (found.value if found else None) == expected(text)
    if found:
        assert list(found.numbers) == [int(word) for word in ast_numbers(text)]


def ast_numbers(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


@given(st.text("0123456789+-*/() \t", max_size=14))
@settings(max_examples=500)
def test_what_has_a_value_here_has_the_same_to_python(text):
    found = value_of(text)
    if found is not None:
        assert expected(text) == found.value


@given(st.text("0123456789+-*/() ", max_size=DIGITS))
@settings(max_examples=500)
def test_what_has_a_value_to_python_has_it_here_but_for_what_the_grammar_leaves_out(text):
    left_out = re.search(r"[-+]\s*[-+]|(^|[(*/])\s*\+|\*\*|//|(?<!\d)0\d", text)
    if expected(text) is not None and not left_out:
        assert value_of(text) is not None


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_any_text_at_all_has_a_value_or_none(text):
    assert value_of(text) is None or expected(text) is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 / 3 * 3", 8),
        ("1 / 3 + 1 / 3 + 1 / 3", 1),
        ("7 - 2 - 1", 4),
        ("-3 + 8", 5),
        ("2 * -3", -6),
        ("-(1 + 2)", -3),
        ("((((5))))", 5),
        (" 4\n*\t5 ", 20),
        ("0", 0),
        ("999999999 * 999999999", 999999999**2),
    ],
)
def test_arithmetic_is_exact(text, value):
    assert value_of(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 +",
        "+1",
        "1 2",
        "2(3)",
        "(1",
        "1)",
        "()",
        "1 / 0",
        "1 / (2 - 2)",
        "2 ** 3",
        "7 // 2",
        "7 % 2",
        "--3",
        "- - 3",
        "1.5",
        "1e3",
        "0x10",
        "007",
        "1_000",
        "٣ + 4",
        "\uff13 + 4",
        "3\xa0+ 4",
        "²",
        "3 − 1",
        "2 × 3",
        "6 ÷ 2",
        "1 + 2 = 3",
        "x",
        "1\x00+ 2",
        "__import__('os')",
        "9**9**9",
        "9" * (DIGITS + 1),
        "(" * (DEPTH + 1) + "1" + ")" * (DEPTH + 1),
        "1" + "+1" * LENGTH,
    ],
    ids=repr,
)
def test_everything_else_has_no_value(text):
    assert value_of(text) is None


def test_limits_are_as_stated():
    assert value_of("(" * DEPTH + "1" + ")" * DEPTH).value == 1
    assert value_of("9" * DIGITS).value == 10**DIGITS - 1
    assert value_of("1" + "+1" * ((LENGTH - 1) // 2)).value == (LENGTH - 1) // 2 + 1


# --------------------------------------------------------------------------- reward


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        ("1 + 2 * 3", 1.0),
        ("3 * 2 + 1", 1.0),
        ("2 * 3 + 1 + 0", 0.0),
        ("7", 0.0),
        ("1 + 2 * 3 * 1", 0.0),
        ("1 + 6", 0.0),
        ("1 + 2 * 3 = 7", 0.0),
        ("1 * 2 * 3", 0.0),
    ],
)
def test_an_equation_uses_every_number_once_and_reaches_the_target(answer, marks):
    assert right_equation([f"so <answer> {answer} </answer>"], [[1, 2, 3]], [7]) == [marks]
    message = {"role": "assistant", "content": f"<answer>{answer}</answer>"}
    assert right_equation([[message]], [[1, 2, 3]], [7]) == [marks]


def test_a_number_given_twice_is_used_twice():
    assert right_equation(["<answer>5 * 5 - 1</answer>"] * 2, [[5, 5, 1], [5, 1, 1]], [24, 24]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<answer> a </answer>", "a"),
        ("<answer>a</answer> then <answer>b</answer>", "b"),
        ("<answer>a</answer> then <answer>b", None),
        ("a", None),
        ("</answer>a<answer>", None),
        ("<answer></answer>", ""),
        ("<answer>a</answer>" + " " * READ, None),
    ],
)
def test_the_last_answer_counts_if_it_is_closed(text, inside):
    assert tagged(text) == inside


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("<think>a</think>\n<answer>b</answer>", 1.0),
        (" <think></think><answer></answer>\n", 1.0),
        ("<think>a</think> so <answer>b</answer>", 0.6),
        ("<think>a</think><answer>b</answer> bye", 0.6),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.6),
        ("<answer>b</answer>", 0.5),
        ("<think>a</think>", 0.1),
        ("<think>a", 0.0),
        ("</answer><answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_has_full_marks_only_for_both_parts_and_nothing_else(text, marks):
    assert format_marks(text) == pytest.approx(marks)


def test_a_prompt_that_begins_the_thought_counts_for_the_format():
    assert format_reward(["a</think><answer>b</answer>", "a"], begun=["<think>", None]) == [1.0, 0.0]


# -------------------------------------------------------------------------- hostile

MEGABYTE = 1_000_000
INSIDE = (
    "9**9**9",
    "9" * MEGABYTE,
    "9" * 5000 + "*" + "9" * 5000,
    "(" * 100_000 + "1" + ")" * 100_000,
    "(" * 100_000,
    "-" * 100_000,
    "1/0",
    "1/(1-1)",
    "",
    " " * 90_000,
    "٣+٤",
    "1+2",
    "²+³",
    "\x00",
    "1\x00+2",
    "__import__('os').system('touch hacked')",
    "().__class__.__bases__[0].__subclasses__()",
    "exec('while 1: pass')",
    "[" * 100_000,
    "1+" * 90_000,
    "1" + "+1" * 60_000,
    "1e999999999",
    "0x" + "f" * 50_000,
    "inf",
    "nan",
    "<answer>" * 10_000,
    "</answer>" * 10_000,
    "\ud7ff🙂" * 1000,
    "lambda: 0",
    "10**10**10",
    "((1+2)*(3+4))/((5-5))",
    "1/3*3-1",
    "%s%n" * 1000,
    "${7*7}",
    "\\frac{1}{0}",
    "1,000",
    "'" * 50_000,
    "\r\n" * 50_000,
)


def hostile() -> list[str]:
    wrapped = [
        *(f"<answer>{text}</answer>" for text in INSIDE),
        *(f"<think>{text}</think><answer>{text}" for text in INSIDE),
        *("<answer" * 20_000, "</answer>" * 20_000, "<answer>" * 20_000, "<think>" * 20_000),
        "<think></think>" * 10_000,
        *("<answer>" * 10_000 + "</answer>" * 10_000, "<" * MEGABYTE, "a" * MEGABYTE, "", "\x00" * MEGABYTE),
    ]
    return [wrapped[place % len(wrapped)] for place in range(10_000)]


ENDLESS = 60.0
"""Processor seconds: a hundred times what is needed, and nothing beside what backtracking would take."""


def test_ten_thousand_hostile_answers_get_nothing_and_take_no_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = hostile()
    begun = time.process_time()
    answers = right_equation(texts, [[7, 8, 9]] * len(texts), [72] * len(texts))
    formats = format_reward(texts)
    spent = time.process_time() - begun
    assert set(answers) == {0.0}
    assert all(0.0 <= marks <= 1.0 for marks in formats)
    assert not list(tmp_path.iterdir())
    assert spent < ENDLESS


def test_a_megabyte_a_hundred_times_takes_no_time_either():
    texts = ["<answer>" + "(1+" * (MEGABYTE // 3) + "</answer>", "<answer>1" + " " * (READ - 20) + "</answer>"] * 50
    begun = time.process_time()
    assert set(right_equation(texts, [[1]] * 100, [2] * 100)) == {0.0}
    assert time.process_time() - begun < ENDLESS
