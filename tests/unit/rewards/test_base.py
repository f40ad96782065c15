"""Reward functions: TRL's conventions, and what happens to those who break them."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math

import numpy as np
import pytest

from reward_calls import rewards, score
from seedtune.errors import ConfigError, RewardError
from seedtune.rewards.base import Reward, keywords_of, text_of, total
from seedtune.rewards.execution.call import RewardCall, raised
from seedtune.rewards.execution.thread import ThreadWorker
from seedtune.tasks.builtin.conciseness import length_error
from seedtune.tasks.data.rows import examples
from waiting import BOUND

ROWS = [{"prompt": "one", "answer": "a"}, {"prompt": "two", "answer": "b", "level": 2}]
TEXT = examples(ROWS, "train")
CHAT = examples([{"prompt": [{"role": "user", "content": "hi"}], "answer": "a"}], "train")


def value_of(function, data=TEXT, texts=("x", "yy")) -> list[float]:
    return score([Reward("fn", function)], data, texts)["fn"]


def error_of(function) -> str:
    with pytest.raises(RewardError) as caught:
        value_of(function)
    return str(caught.value)


def test_an_answer_that_the_prompt_begins_belongs_to_the_completion_as_in_trl():
    begun = [*CHAT[0].prompt, {"role": "assistant", "content": "Let me think: "}]
    (example,) = examples([{"prompt": begun}], "train")
    assert keywords_of([example, CHAT[0], TEXT[0]], ["4", "5", "6"], []) == {
        "prompts": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}], "one"],
        "completions": [
            [{"role": "assistant", "content": "Let me think: 4"}],
            [{"role": "assistant", "content": "5"}],
            "6",
        ],
    }
    assert example.prompt == tuple(begun)


def test_prompts_completions_and_columns_go_in_by_name():
    def fn(prompts, completions, answer, level):
        assert (prompts, completions) == (["one", "two"], ["x", "yy"])
        assert (answer, level) == (["a", "b"], [None, 2])
        return [1, 2]

    assert value_of(fn) == [1.0, 2.0]


def test_a_function_may_take_fewer_keywords():
    assert value_of(lambda completions: [len(c) for c in completions]) == [1.0, 2.0]


def test_a_function_with_keywords_takes_all():
    def fn(**kwargs):
        assert sorted(kwargs) == ["answer", "completions", "level", "prompts"]
        return [0, 0]

    assert value_of(fn) == [0.0, 0.0]


def test_a_column_cannot_stand_in_for_the_completions():
    data = examples([{"prompt": "p", "completions": "column", "prompts": "column"}], "train")
    assert value_of(lambda prompts, completions: [prompts == ["p"] and completions == ["x"]], data, ["x"]) == [1.0]


def test_an_async_function_is_awaited():
    async def fn(completions):
        await asyncio.sleep(0)
        return [len(c) for c in completions]

    assert value_of(fn) == [1.0, 2.0]


def test_an_async_function_is_awaited_in_a_notebook_too():
    async def fn(completions):
        return [0.5] * len(completions)

    async def notebook():
        return value_of(fn)

    assert asyncio.run(notebook()) == [0.5, 0.5]


@pytest.mark.parametrize("where", ["main thread", "two threads", "notebook"])
def test_async_functions_share_an_event_loop_as_in_trl(where):
    """What a module made once (a semaphore, a client, a queue) works in every call, and in several functions."""
    gate, loops = asyncio.Semaphore(1), set()

    async def one():
        async with gate:
            loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return 1.0

    async def fn(completions):
        return await asyncio.gather(*(one() for _ in completions))

    async def notebook():
        return [value_of(fn) for _ in range(3)]

    if where == "main thread":
        found = [value_of(fn) for _ in range(3)]
    elif where == "notebook":
        found = asyncio.run(notebook())
    else:
        workers = [ThreadWorker(), ThreadWorker()]
        calls = [worker.call(RewardCall(fn, "", {"completions": ["x", "yy"]}, 2, BOUND)) for worker in workers * 2]
        found = [call.values for call in calls]
    assert set(map(tuple, found)) == {(1.0, 1.0)}
    assert len(loops) == 1


def test_an_async_function_that_hangs_keeps_nothing_from_later_calls():
    gate, worker = asyncio.Semaphore(1), ThreadWorker()

    async def fn(completions):
        async with gate:
            await asyncio.sleep(BOUND if completions == ["hang"] else 0)
            return [1.0]

    first, second = (
        worker.call(RewardCall(fn, "", {"completions": [x]}, 1, s)) for x, s in (("hang", 0.5), ("", BOUND))
    )
    assert first.faults[0].kind == "hang"
    assert second.values == [1.0]


def test_objects_and_partials_are_functions():
    class Judge:
        def __call__(self, completions):
            return [3.0] * len(completions)

    assert value_of(Judge()) == [3.0, 3.0]
    assert value_of(functools.partial(lambda scale, completions: [scale for _ in completions], 4)) == [
        4.0,
        4.0,
    ]


def test_conversational_prompts_give_conversational_completions():
    def fn(prompts, completions):
        assert prompts == [[{"role": "user", "content": "hi"}]]
        assert completions == [[{"role": "assistant", "content": "x"}]]
        prompts[0][0]["content"] = "changed"
        return [1]

    value_of(fn, CHAT, ["x"])
    assert CHAT[0].prompt[0]["content"] == "hi"


@pytest.mark.parametrize("value", [None, math.nan], ids=str)
def test_none_and_nan_mean_that_it_could_not_be_evaluated(value):
    first, second = value_of(lambda completions: [value, 1.0])
    assert math.isnan(first)
    assert second == 1.0


def test_numpy_values_and_truth_are_numbers():
    assert value_of(lambda completions: np.array([1, 2], np.float32)) == [1.0, 2.0]
    assert value_of(lambda completions: (c == "x" for c in completions)) == [1.0, 0.0]


def test_a_function_that_raises_is_named_with_what_it_raised():
    def judge(completions):
        raise KeyError("answer")

    assert error_of(judge).startswith("the reward function 'fn' raised KeyError: 'answer'.")


def test_what_an_exception_says_is_told_also_from_a_group_and_if_it_has_no_text():
    class MuteError(Exception):
        def __str__(self):
            raise KeyError("code")

    for error, words in [
        (ExceptionGroup("2 tasks", [ExceptionGroup("", [ValueError("no key")])]), "raised ValueError: no key"),
        (MuteError(), "raised MuteError: (its text raised KeyError)"),
    ]:
        assert raised(error) == words


def test_a_function_that_needs_what_the_data_lacks_is_named():
    assert "raised TypeError" in error_of(lambda completions, missing: [0, 0])


def test_an_interrupt_in_a_reward_is_no_reward_error():
    def fn(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        value_of(fn)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (None, "returned NoneType, not a list of 2 numbers"),
        (1.0, "returned float, not a list of 2 numbers"),
        (["0.5", "1"], "returned '0.5', which is text"),
        (b"12", "returned bytes, not a list of 2 numbers"),
        ({0: 1.0, 1: 2.0}, "returned dict, not a list of 2 numbers"),
        ({1.0, 2.0}, "returned set, not a list of 2 numbers"),
        (itertools.count(), "returned 3 values for 2 completions"),
        ("ab", "returned 'a', which is text"),
        ([[1], [2]], r"returned \[1\] \(list\)"),
        ([1j, 2j], r"\(complex\)"),
        ([1.0, math.inf], "returned inf, which is not finite"),
        ([1.0, -1e100], r"returned -1e\+100, too large to be averaged: return a number within ±1e\+60, or None"),
        ([10**400, 1.0], r"\(int\): return a number or None"),
    ],
    ids=str,
)
def test_anything_but_one_number_each_is_an_error(returned, message):
    with pytest.raises(RewardError, match=message):
        value_of(lambda completions: returned)


def test_the_total_is_the_weighted_sum_of_what_applies():
    both = [Reward("a", len, 2.0), Reward("b", len, -0.5)]
    values = {"a": [1.0, math.nan, math.nan], "b": [4.0, 4.0, math.nan]}
    first, second, third = total(both, values)
    assert (first, second) == (0.0, -2.0)
    assert math.isnan(third)


def test_a_total_beyond_what_a_float_holds_could_not_be_evaluated():
    both = [Reward("a", len, 10.0), Reward("b", len, 1.0)]
    assert total(both, {"a": [1e308], "b": [1.0]}) == [1.0]
    assert math.isnan(total([Reward("a", len), Reward("b", len)], {"a": [1.7e308], "b": [1.7e308]})[0])


def test_functions_of_one_name_are_told_apart():
    made = rewards([lambda completions: [1], lambda completions: [2], len], [1, 10, 100])
    assert [reward.name for reward in made] == ["<lambda>", "<lambda>_2", "len"]
    values = score(made[:2], TEXT[:1], ["x"])
    assert total(made[:2], values) == [21.0]


def test_one_function_alone_is_a_list_of_one():
    assert rewards(length_error, None) == (Reward("length_error", length_error, 1.0),)


def test_weights_must_match_the_functions():
    with pytest.raises(ConfigError, match="2 reward functions but 1 reward_weights"):
        rewards([len, max], [1.0])
    with pytest.raises(ConfigError, match="reward_funcs is empty"):
        rewards([], None)


def test_length_error_counts_characters_of_text_and_of_messages():
    assert length_error(["abcd", [{"role": "assistant", "content": "ab"}]], ["ab", "abcdé"]) == [-2.0, -3.0]
    assert text_of([{"content": "a"}, {"content": None}, {"content": [{"type": "text", "text": "b"}]}]) == "ab"
    assert text_of([{"tool_calls": []}, {"content": [{"type": "reasoning", "text": "a"}, {"type": "image"}]}]) == ""
