"""Environments: what is a tool, how calls are read, transcripts, and the shipped one."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest

from seedtune.config.config import Config
from seedtune.errors import ConfigError, RewardError
from seedtune.rewards.base import Reward
from seedtune.rollouts.conversations import _replies
from seedtune.rollouts.prepare import check
from seedtune.tasks.base import Task
from seedtune.tasks.builtin.number_guessing import NumberGuessing
from seedtune.tasks.environments import (
    ToolCall,
    calls_in,
    continued,
    describe,
    environment_reward,
    introduced,
    opened,
    run,
    schemas,
    since,
    tools_of,
    try_out,
)
from seedtune.tasks.from_config import environment_of
from talking import CHATS


class Shop:
    """An environment with tools."""

    def reset(self, **columns) -> None:
        self.reward = 0.0

    def buy(self, count: int, what: str) -> str:
        """
        Buy things.

        Args:
            count: How many.
            what: Of what.

        Returns:
            What was bought.
        """
        if count > 9:
            raise ValueError("too many")
        return f"{count + 0} {what}"

    def look(self) -> str:
        """
        Look around.

        Returns:
            What there is.
        """
        return "apples"

    def close(self) -> None:
        """Not a tool."""

    def _secret(self) -> None:
        """Not a tool either."""


@pytest.fixture
def tools():
    return tools_of(Shop(), {})


def test_public_methods_but_the_reserved_ones_are_tools(tools):
    assert list(tools) == ["buy", "look"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<tool_call>\n{"name": "buy", "arguments": {"count": 2, "what": "figs"}}\n</tool_call>', ["2 figs"]),
        ('Well.<tool_call>{"name": "look", "arguments": {}}</tool_call>', ["apples"]),
        ('<tool_call>{"name": "look"}</tool_call><tool_call>{"name": "look"}', ["apples", "apples"]),
        (' {"name": "buy", "parameters": {"count": 3, "what": "figs"}} ', ["3 figs"]),
        ("buy(4, red apples, green ones)", ["4 red apples, green ones"]),
        ('I will.\nbuy: 5, "figs"\nlook()\nlook', ["5 figs", "apples", "apples"]),
        ("buy 6, figs", ["6 figs"]),
        ("I would buy it, but look, no.", []),
        ("", []),
        ("sell(1)", []),
    ],
)
def test_calls_are_read_as_json_and_as_lines(tools, text, said):
    assert [run(call, tools) for call in calls_in(text, tools)] == said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("buy(10, figs)", "Error: too many"),
        ("buy(figs)", "invalid literal for int"),
        ("buy(1)", "missing 1 required positional argument"),
        ('<tool_call>{"name": "buy", "arguments": {"kind": 1}}</tool_call>', "unexpected keyword argument 'kind'"),
        ('<tool_call>{"name": "sell", "arguments": {}}</tool_call>', "there is no tool 'sell'. Known: buy, look"),
        ('<tool_call>{"name": "_secret", "arguments": {}}</tool_call>', "there is no tool '_secret'"),
        ('<tool_call>{"name": "reset", "arguments": {}}</tool_call>', "there is no tool 'reset'"),
        ("<tool_call>{buy}</tool_call>", "not a tool call in JSON: '{buy}'"),
        ("<tool_call>[1]</tool_call>", "needs a name and arguments"),
        ('{"name": "buy", "arguments": [1]}', "must be an object"),
    ],
)
def test_a_wrong_call_is_told_to_the_model(tools, text, error):
    (call,) = calls_in(text, tools)
    assert run(call, tools).startswith("Error: ")
    assert error in run(call, tools)


def test_a_message_of_very_many_brackets_is_no_call(tools):
    (call,) = calls_in('{"name": ' + "[" * 200_000, tools)
    assert call.wrong is not None
    assert call.wrong.startswith("not a tool call in JSON")
    assert len(call.wrong) < 600


def test_arguments_in_a_line_are_numbers_and_booleans_where_hints_say_so():
    def tool(a: float, b: bool, c) -> str:
        return repr((a, b, c))

    assert run(ToolCall("tool", text="2, true, 'x'"), {"tool": tool}) == "(2.0, True, 'x')"
    assert run(ToolCall("tool", text="2, maybe, x"), {"tool": tool}).startswith("Error: ")


def test_tools_are_described_in_a_line_each_and_as_schemas(tools):
    assert describe(tools).split("\n")[1:] == ["buy(count, what): Buy things.", "look(): Look around."]
    names = [schema["function"]["name"] for schema in schemas(tools)]
    assert names == ["buy", "look"]
    assert schemas(tools)[0]["function"]["parameters"]["required"] == ["count", "what"]


class Helping(Shop):
    """Properties that cannot be read before the first reset, and methods that are no tools."""

    made = 0

    @property
    def score(self) -> float:
        raise RuntimeError("not reset yet")

    @cached_property
    def world(self) -> str:
        raise KeyError("no world")

    @property
    def step(self) -> str:
        raise RuntimeError("not reset yet")

    @classmethod
    def shops(cls) -> str:
        """
        Name the shops.

        Returns:
            The names.
        """
        return "one"


class Undocumented(Shop):
    def tally(self): ...


class Unhinted(Shop):
    def tally(self, what) -> str:
        """
        Count.

        Args:
            what: Of what.
        """


class Unknown(Shop):
    def tally(self, what: Fruit) -> str:  # noqa: F821
        """
        Count.

        Args:
            what: Of what.
        """


class Stuck(Shop):
    def __init__(self) -> None:
        raise OSError("no world.json")


class Endless:
    def step(self, text: str) -> None: ...


def test_properties_are_no_tools_and_not_read():
    assert list(tools_of(Helping(), {})) == ["buy", "look", "shops"]
    try_out(Helping, {}, templated=True)
    try_out(Helping, {}, templated=False)


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (Undocumented, {}, r"method 'tally' is a tool, but cannot be described .* no docstring. Give it type hints"),
        (Unhinted, {}, r"method 'tally' .* what is missing a type hint"),
        (Unknown, {}, r"method 'tally' .* name 'Fruit' is not defined"),
        (Unknown, {"conversation": {"tools": "text"}}, r"method 'tally' .* name 'Fruit' is not defined"),
        (Undocumented, {"conversation": {"tools": "text"}}, None),
        (Stuck, {}, r"its environment raised OSError: no world\.json"),
        (Endless, {}, r"the environment 'Endless' has no 'reset'"),
    ],
)
def test_an_environment_is_tried_out_before_a_model_is_loaded(factory, settings, message):
    task = Task("custom", CHATS, (), (Reward("r", environment_reward),), environment=factory)
    config = Config.create({**settings, "environment": "number_guessing"})
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        check(config, task)


# -------------------------------------------------------------------------------------------------- transcripts

USER = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be kind."}


def test_a_text_grows_by_lines():
    grown = continued("prompt:", "one", [{"role": "user", "content": "higher"}])
    assert grown == "prompt:one\nhigher\n"
    assert since(continued(grown, "two", ()), "prompt:") == "one\nhigher\ntwo\n"


def test_a_chat_grows_by_messages():
    grown = continued((USER,), "one", [{"role": "tool", "content": text} for text in "ab"])
    assert [m["role"] for m in grown] == ["user", "assistant", "tool", "tool"]
    assert since(grown, (USER,)) == "assistant: one\ntool: a\ntool: b"


def test_the_first_observation_goes_behind_the_prompt():
    assert opened("prompt", " more") == "prompt more"
    assert opened((SYSTEM, USER), " More.") == (SYSTEM, {"role": "user", "content": "Hi. More."})
    assert opened((USER,), None) == (USER,)


@pytest.mark.parametrize("reply", ["half \ud83d", "\udcff"])
def test_replies_that_no_tokenizer_reads_are_the_environments_fault(reply):
    class Half:
        def step(self, text):
            return reply

        def look(self):
            return reply

    for environment, said in ((Half(), "Hi."), (SimpleNamespace(), "look()")):
        talk = SimpleNamespace(environment=environment, tools={"look": Half().look})
        with pytest.raises(UnicodeEncodeError):
            _replies(talk, said, "user")


def test_an_answer_that_the_prompt_begins_is_one_message_with_what_the_model_adds():
    begun = (USER, {"role": "assistant", "content": "Let me"})
    assert opened(begun, " More.") == ({"role": "user", "content": "Hi. More."}, begun[1])
    grown = continued(begun, " see", [{"role": "user", "content": "Yes?"}])
    assert [message["content"] for message in grown] == ["Hi.", "Let me see", "Yes?"]
    assert since(grown, begun) == "assistant: Let me see\nuser: Yes?"


def test_tools_are_introduced_in_front_of_the_prompt():
    assert introduced("prompt", "tools") == "tools\n\nprompt"
    assert introduced((USER,), "tools") == ({"role": "system", "content": "tools"}, USER)
    assert introduced((SYSTEM, USER), "tools") == ({"role": "system", "content": "Be kind.\n\ntools"}, USER)


# ---------------------------------------------------------------------------------------------- number guessing


def play(said: list[str], **columns) -> tuple[list[str | None], float]:
    environment = NumberGuessing()
    environment.reset(**{"low": 1, "high": 15, "answer": 11, **columns})
    return [environment.step(text) for text in said], environment.reward


def test_halving_finds_every_number():
    for answer in range(1, 16):
        environment = NumberGuessing()
        environment.reset(low=1, high=15, answer=answer)
        low, high = 1, 15
        while (reply := environment.step(f"{(low + high) // 2}!")) is not None:
            low, high = ((low + high) // 2 + 1, high) if reply == "higher" else (low, (low + high) // 2 - 1)
        assert environment.reward == 1.0


def test_guesses_are_answered_until_they_are_used_up():
    assert play(["4", "I say 12", "none", "16"]) == (["higher", "lower", "between 1 and 15", None], 0.0)
    assert play(["4", "11"]) == (["higher", None], 1.0)
    assert play(["4"], guesses=1) == ([None], 0.0)
    assert play(["-3"], low=-5, answer=-3) == ([None], 1.0)


def test_a_row_whose_answer_lies_outside_is_an_error():
    with pytest.raises(ValueError, match="answer=20 must lie between low=1 and high=15"):
        play([], answer=20)


# ------------------------------------------------------------------------------------------- rewards and names


def test_an_own_reward_is_a_number_or_a_method():
    class Method:
        def reward(self) -> float:
            return 0.5

    shop = Shop()
    shop.reset()
    assert environment_reward([shop, Method()]) == [0.0, 0.5]
    with pytest.raises(RewardError, match="the environment 'object' has no 'reward'"):
        environment_reward([object()])


def test_environments_are_found_by_name_by_module_and_by_file(tmp_path: Path):
    file = tmp_path / "my.py"
    file.write_text("class Mine:\n    def reset(self):\n        return 'hi'\n")
    assert environment_of("number_guessing") is NumberGuessing
    assert environment_of("seedtune.tasks.builtin.number_guessing.NumberGuessing") is NumberGuessing
    assert environment_of(f"{file}:Mine")().reset() == "hi"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number_gessing", "Did you mean 'number_guessing'"),
        ("nowhere.Mine", "environment='nowhere.Mine': there is no module 'nowhere'"),
        ("missing.py:Mine", "there is no file 'missing.py'"),
        ("seedtune.types.Missing", "environment='seedtune.types.Missing': there is no 'Missing' in it"),
    ],
)
def test_an_environment_that_is_not_there_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        environment_of(name)
