"""Mathematical answers: what is found in a completion, what equals what, and what math-verify never sees."""

from __future__ import annotations

import signal
import threading

import pytest

from seedtune.rewards.answer_tags import READ
from seedtune.tasks.builtin.math_answer import (
    LENGTH,
    alike,
    bounded,
    equal,
    final_answer,
    math_answer,
    number,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}.", "5"),
        ("first \\boxed{4}, no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<answer> 12 </answer>", "12"),
        ("\\boxed{5} <answer>6</answer>", "5"),
        ("2 + 2\n#### 1,234\nbye", "1,234"),
        ("\\boxed{5", None),
        ("the answer is 5", None),
        ("", None),
        ("\\boxed{" + "1" * LENGTH * 2 + "}", None),
        ("\\boxed{5}" + " " * READ, None),
        ("\\boxed{" * 5000, None),
    ],
)
def test_the_final_answer_is_boxed_or_tagged_or_after_four_hashes(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("1,234.50", 1234.5),
        ("3/4", 0.75),
        ("-.5", -0.5),
        ("$3", 3),
        ("-$3", -3),
        ("007", 7),
        ("-\\frac{3}{4}", -0.75),
    ],
)
def test_plain_numbers_are_read_exactly(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "-", "--5", "1/0", "1,23", "5x", "1e5", "1.2.3", "٣", "9" * 100, "."])
def test_everything_else_is_no_plain_number(text):
    assert number(text) is None


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("5.0", "5"),
        ("1,234", "1234"),
        ("\\$12", "12"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac12", "0.5"),
        ("\\dfrac{3}{4}", "\\frac{3}{4}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("(1,2)", "(1, 2)"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("\\frac{\\pi}{2}", "\\pi/2"),
        ("1024", "2^{10}"),
        ("[0, 1)", "[0,1)"),
        ("\\text{Monday}", "\\text{Monday}"),
        ("x=5", "5"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ],
)
def test_equal_answers_are_equal_however_they_are_written(found, answer):
    assert equal(found, answer)


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("4", "5"),
        ("", "5"),
        (None, "5"),
        ("0.3333", "\\frac{1}{3}"),
        ("(2,1)", "(1,2)"),
        ("x^2+2x", "x^2+2x+1"),
        ("\\sqrt{3}", "\\sqrt{2}"),
        ("(0, 1)", "[0,1]"),
        ("\\{1, 2\\}", "3"),
        ("5 or 6", "5"),
        (".", ""),
    ],
)
def test_other_answers_are_not(found, answer):
    assert not equal(found, answer)


HOSTILE = (
    "9^{9^{9}}",
    "9^9^9",
    "((9^{99})^{99})^{99}",
    "2^{99999}",
    "9^{9}^{9}",
    "x^299999999",
    "99999999^2\\ln{2}",
    "999\\cdot 999\\cdot 999\\ln{2}",
    "9^{5/0.0000001}",
    "9^{\\frac{5}{0.0000001}}",
    "\\sqrt[0.0000001]{9}",
    "\\sum_{i=0}^{1000000} i",
    "\\int_0^1 x dx",
    "100000!",
    "((9!)!)!",
    "\\binom{99999999}{5000000}",
    "9" * 150,
    "{" * 60 + "1" + "}" * 60,
    "\\sqrt{\\sqrt{\\sqrt{\\sqrt{2}}}}",
    "__import__('os')\\alpha!",
    "\\input{secret}",
    "9**9**9",
    "5\x00",
    "99999999^2\\ln{2}}^2",
    "٣",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_could_take_long_never_reaches_the_computer_algebra(text):
    assert not bounded(text)
    assert not equal(text, "5")


@pytest.mark.parametrize("text", ["x^2+2x+1", "2^{10}", "\\frac{1}{\\sqrt{2}}", "e^{2\\pi i/3}", "(-\\infty, 2]"])
def test_ordinary_answers_do(text):
    assert bounded(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\cos{x} n", "5"),
        ("\\sin{1}", "5"),
        ("3/\\pi - 2 \\cdot n \\infty", "n"),
        ("x+y", "x"),
        ("1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1", "25"),
    ],
)
def test_answers_of_another_kind_do_not_either(text, answer):
    assert bounded(text)
    assert not alike(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x = 5", "5"),
        ("10 \\text{ cm}", "10"),
        ("x \\in (-\\infty, \\frac{1}{2}]", "(-\\infty,1/2]"),
        ("\\ln 2", "\\ln{2}"),
    ],
)
def test_answers_with_a_variable_or_a_unit_before_or_after_do(text, answer):
    assert alike(text, answer)
    assert equal(text, answer)


def test_no_timer_is_touched_and_other_threads_may_score():
    def ring(*_: object) -> None:
        raise AssertionError

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    found: list[float] = []
    try:
        args = (["\\boxed{x+1}", "\\boxed{x+2}"], ["1+x", "1+x"])
        thread = threading.Thread(target=lambda: found.extend(math_answer(*args)))
        thread.start()
        thread.join()
        assert found == math_answer(*args) == [1.0, 0.0]
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
        assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_messages_are_read_as_text_is():
    assert math_answer([[{"role": "assistant", "content": "\\boxed{7}"}]], ["7"]) == [1.0]
