"""Prompts that are too long: an error, shortened so that rewards see what the model reads, or left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from seedtune.errors import DataError
from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task
from seedtune.tasks.data.prompt_length import Limit, fit
from seedtune.types import Example

SYSTEM = {"role": "system", "content": "Be kind."}
FRAME = 3


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def measure(rows) -> list[int]:
    """A token a character, and three around each message."""
    return [
        len(row.prompt) if isinstance(row.prompt, str) else sum(FRAME + len(m["content"]) for m in row.prompt)
        for row in rows
    ]


def task(*prompts, test=()) -> Task:
    def rows(given):
        return tuple(Example(index, prompt, {"x": index}) for index, prompt in enumerate(given))

    return Task("custom", rows(prompts), rows(test), (Reward("r", len),))


def fitted(policy: str, *prompts, tokens: int = 10, test=()) -> Task:
    return fit(task(*prompts, test=test), Limit(tokens, "why", policy), measure)


@pytest.mark.parametrize("policy", ["error", "left", "drop"])
def test_prompts_that_fit_are_left_as_they_are(policy):
    assert fitted(policy, "a" * 10, "b", test=("c",)) == task("a" * 10, "b", test=("c",))


def test_an_error_names_the_first_row_its_tokens_the_limit_and_the_fix():
    with pytest.raises(DataError) as caught:
        fitted("error", "a", "b" * 11, "c" * 12)
    assert str(caught.value).startswith(
        "prompt 1 of the training data has 11 tokens, more than 10 (why); 2 of 3 prompts are too long."
    )
    with pytest.raises(DataError, match="prompt 0 of the held-out data has 20 tokens"):
        fitted("error", "a", test=("b" * 20,))


def test_dropped_rows_leave_the_others_their_numbers(caplog):
    found = fitted("drop", "a", "b" * 11, "c", test=("d" * 20, "e"))
    assert [(row.id, row.prompt) for row in found.train] == [(0, "a"), (2, "c")]
    assert [(row.id, row.prompt) for row in found.test] == [(1, "e")]
    assert "1 of 3 training prompts are left out: more than 10 tokens" in caplog.text


def test_dropping_everything_is_an_error():
    with pytest.raises(DataError, match="prompt 0 of the training data has 11 tokens, more than 10"):
        fitted("drop", "a" * 11)


def test_text_loses_its_beginning_and_its_columns_stay(caplog):
    (row,) = fitted("left", "0123456789abc").train
    assert (row.prompt, row.columns) == ("3456789abc", {"x": 0})
    assert "1 of 1 training prompts are shortened from the left" in caplog.text


def test_long_texts_are_cut_close_to_the_limit():
    (row,) = fitted("left", "x" * 10_000 + "end", tokens=5000).train
    assert 5000 - 10_003 // 256 <= len(row.prompt) <= 5000
    assert row.prompt.endswith("end")


def test_a_conversation_loses_its_oldest_turns_first_and_never_its_system_message():
    long = (SYSTEM, user("first" * 10), assistant("reply"), user("second"))
    assert fitted("left", long, tokens=25).train[0].prompt == (SYSTEM, user("second"))


def test_the_last_message_loses_its_beginning_when_it_is_alone():
    assert fitted("left", (SYSTEM, user("0123456789")), tokens=20).train[0].prompt == (SYSTEM, user("456789"))


def test_a_conversation_does_not_begin_with_an_answer():
    turns = (user("a" * 9), assistant("b"), assistant("c"), user("d"), assistant("e"), user("f"))
    assert fitted("left", turns, tokens=16).train[0].prompt == turns[3:]


def test_what_stands_around_a_prompt_cannot_be_cut():
    with pytest.raises(DataError, match="prompt 0 cannot be shortened to 10 tokens"):
        fitted("left", (SYSTEM, user("Hi")))


def test_an_answer_that_has_begun_stays_with_its_question():
    begun = (user("old" * 9), assistant("reply"), user("0123456789"), assistant("Let"))
    assert fitted("left", begun, tokens=20).train[0].prompt == begun[2:]
    assert fitted("left", begun, tokens=15).train[0].prompt == (user("456789"), assistant("Let"))


def refusing(rows) -> list[int]:
    """Refuses rows that begin with an x."""
    for row in rows:
        if row.prompt.startswith("x"):
            raise DataError(f"prompt {row.id} is refused.")
    return measure(rows)


@pytest.mark.parametrize("policy", ["error", "left"])
@pytest.mark.parametrize(("train", "test", "split"), [("abxd", "e", "training"), ("ab", "cx", "held-out")])
def test_a_row_that_cannot_be_read_is_an_error_before_training(policy, train, test, split):
    with pytest.raises(DataError) as caught:
        fit(task(*train, test=test), Limit(policy=policy), refusing)
    place, rows = (2, 4) if split == "training" else (1, 2)
    assert str(caught.value) == (
        f"row {place} of the {split} data: prompt {place} is refused. So it is with 1 of {rows} rows; to leave them "
        "out, set prompt_truncation=drop."
    )


@pytest.mark.parametrize("ids", [[0, 0, 0, 0], [3, 2, 1, 0]], ids=str)
def test_dropped_rows_keep_their_places_whatever_their_numbers(ids):
    rows = tuple(Example(number, prompt, {}) for number, prompt in zip(ids, ("a", "x", "c" * 20, "d"), strict=True))
    whole = replace(task(), train=rows)
    found = fit(whole, Limit(math.inf, "why", "drop"), refusing)
    found = fit(found, Limit(10, "why", "drop"), refusing)
    assert [row.prompt for row in found.train] == ["a", "d"]
    assert found.dropped == {1: rows[1], 2: rows[2]}
    assert found.whole_digest() == whole.digest()


def test_one_row_that_cannot_be_read_costs_a_few_calls():
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return refusing(rows)

    found = fit(task(*("x" if place == 300 else "a" for place in range(1000))), Limit(policy="drop"), counted)
    assert list(found.dropped) == [300]
    assert len(calls) < 25


def test_rows_that_cannot_be_read_are_dropped_if_so_chosen_and_known_to_the_task(caplog):
    whole = task("a", "x", "c" * 20, "d", test=("x", "e"))
    found = fit(whole, Limit(10, "why", "drop"), refusing)
    assert [row.id for row in found.train] == [0, 3]
    assert [row.id for row in found.test] == [1]
    assert "1 of 4 training prompts are left out: prompt 1 is refused." in caplog.text
    assert found.digest() != found.whole_digest() == whole.digest() == whole.whole_digest()
    with pytest.raises(DataError, match=r"row 0 of the training data: prompt 0 is refused\. So it is with 2 of 2 rows"):
        fit(task("x", "xy"), Limit(policy="drop"), refusing)
