"""Several environments by name: the column that chooses one, their tools, their rewards, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedtune.config.config import Config
from seedtune.errors import ConfigError, DataError
from seedtune.rewards.base import Reward
from seedtune.rollouts.prepare import check, prepare
from seedtune.tasks.data.rows import examples
from seedtune.tasks.environments import begun_with, own_rewards, tools_of
from seedtune.tasks.from_config import TaskInputs
from talking import MEMBERS, Calling, Counting, Scripted, calls, played, task


class Shop:
    """An environment as TRL has them, with a reward of its own."""

    def reset(self, **columns) -> None:
        self.columns, self.bought = columns, 0

    def buy(self) -> str:
        """Buy one."""
        self.bought += 1
        return f"{self.bought} bought"

    def get_reward(self) -> float:
        return 10.0 * self.bought


USER = [{"role": "user", "content": "Go."}]
BOTH = {"shop": Shop, "sum": Calling}
ROWS = [{"prompt": USER, "environment": name, "start": 1} for name in ("shop", "sum")]


def given(rows=ROWS, rewards=None, environment=BOTH, held_out=None, **settings):
    """A prepared run of these rows, which holds none out unless some are given."""
    config = Config(engine="toy", model="toy", eval_size=0, **settings)
    return prepare(config, TaskInputs(rewards, train=rows, test=held_out, environment=environment))


def test_a_row_has_the_environment_that_it_names_and_reset_gets_the_other_columns():
    shop, counting = examples(ROWS, "train")
    made, _ = begun_with(BOTH, shop)
    assert isinstance(made, Shop)
    assert made.columns == {"prompt": ({"role": "user", "content": "Go."},), "start": 1}
    assert isinstance(begun_with(BOTH, counting)[0], Calling)
    assert begun_with(Shop, shop)[0].columns["environment"] == "shop"


@pytest.mark.parametrize("way", ["template", "text"])
def test_a_prompt_shows_the_tools_of_its_environment_alone(way):
    engine = Scripted(calls)
    rows = examples(ROWS, "train")
    rewards = [Reward(name, function) for name, function in own_rewards(BOTH, beside=False).items()]
    outcome = played(engine, task(BOTH, rows, *rewards), members=MEMBERS[:1], conversation={"tools": way})
    shop, counting = engine.jobs[0][0].prompts
    if way == "template":
        shown = [[tool["function"]["name"] for tool in each.template_kwargs["tools"]] for each in (shop, counting)]
        assert shown == [["buy"], ["add"]]
    else:
        assert "buy()" in str(shop.content)
        assert "add(" not in str(shop.content)
        assert "add(number)" in str(counting.content)
    np.testing.assert_array_equal(outcome.scores, [[0.0, 2.0]])  # add(5) is no tool of the shop


def test_equal_prompts_whose_template_variables_differ_are_asked_each():
    rows = [{"prompt": USER, "start": 0, "chat_template_kwargs": {"think": think}} for think in (True, False, True)]
    engine = Scripted(calls)
    played(engine, task(Counting, examples(rows, "train")), members=MEMBERS[:1], max_reward_failure_rate=1.0)
    assert [prompt.template_kwargs for prompt in engine.jobs[0][0].prompts] == [{"think": True}, {"think": False}]


def test_every_class_has_a_reward_and_other_rows_have_none_of_it():
    def buying(member, prompt):
        return "buy()" if prompt.turn == 0 else calls(member, prompt)

    rows = examples([*ROWS, {"prompt": USER, "environment": "market", "start": 1}], "train")
    own = own_rewards({**BOTH, "market": Shop}, beside=False)
    assert list(own) == ["Shop", "Calling"]
    rewards = [Reward(name, function) for name, function in own.items()]
    outcome = played(Scripted(buying), task({**BOTH, "market": Shop}, rows, *rewards), members=MEMBERS[:1])
    np.testing.assert_array_equal(outcome.by_reward[:, 0], [[10.0, math.nan, 10.0], [math.nan, 0.0, math.nan]])
    np.testing.assert_array_equal(outcome.scores, [[10.0, 0.0, 10.0]])
    assert not any(outcome.failed.values())


def test_a_reward_of_environments_runs_in_a_thread_without_a_note(caplog):
    rewards = [Reward(name, function) for name, function in own_rewards(BOTH, beside=False).items()]
    played(Scripted(calls), task(BOTH, examples(ROWS, "train"), *rewards), members=MEMBERS[:1])
    assert not caplog.records


def test_get_reward_is_no_tool_and_named_after_its_class():
    assert list(tools_of(Shop(), {})) == ["buy"]
    assert list(own_rewards(Shop, beside=False)) == list(own_rewards(Shop, beside=True)) == ["Shop"]
    assert list(own_rewards(Counting, beside=False)) == ["environment_reward"]
    assert list(own_rewards({"a": Shop, "b": lambda: Shop()}, beside=False)) == ["Shop", "b"]


def test_beside_reward_functions_only_get_reward_counts_with_the_weight_1():
    def short(completions, **_):
        return [0.0 for _ in completions]

    def shop(completions, **_):
        return [0.0 for _ in completions]

    shop.__name__ = "Shop"
    weights = [(reward.name, reward.weight) for reward in given(rewards=short, reward_weights=[0.5]).task.rewards]
    assert weights == [("short", 0.5), ("Shop", 1.0)]
    assert [reward.name for reward in given(rewards=shop).task.rewards] == ["Shop", "Shop_2"]
    assert [reward.name for reward in given(environment=Shop, rewards=short).task.rewards] == ["short", "Shop"]
    assert [reward.name for reward in given(environment=Counting, rewards=short).task.rewards] == ["short"]


# ---------------------------------------------------------------------------------------------- what is refused


def rows_with(**more):
    return [*ROWS, {"prompt": USER, "start": 1, **more}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_with(), "there are several environments, but no column 'environment' names .* Known: shop, sum"),
        (rows_with(environment=None), "no column 'environment' names that of the row. Add it"),
        (rows_with(environment="shp"), "environment='shp' is none .* Did you mean 'shop'. Known: shop, sum"),
        (rows_with(environment=["shop"]), r"environment=\['shop'\] is none of the environments"),
    ],
)
def test_every_row_names_one_of_the_environments(rows, message):
    with pytest.raises(DataError, match=f"^row 2 of the training data: .*{message}"):
        given(rows)
    with pytest.raises(DataError, match=f"^row 2 of the held-out data: .*{message}"):
        given(held_out=rows)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"environment_factory=\{\} has no environment. Give \{NAME: class\}"),
        (
            {"shop": Shop()},
            "environment_factory has 'shop': <.*Shop object at .*, but it takes classes or functions by name",
        ),
        ({"shop": "shop.py:Shop"}, "environment_factory has 'shop': 'shop.py:Shop', but it takes classes"),
        ({1: Shop}, "environment_factory has 1: <class"),
    ],
)
def test_a_mapping_holds_factories_by_name(environment, message):
    with pytest.raises(ConfigError, match=message):
        given(environment=environment)


@pytest.mark.parametrize("settings", [{}, {"task": "toy"}])
def test_several_environments_need_training_data(settings):
    with pytest.raises(ConfigError, match=r"several environments \(shop, sum\), but no train_dataset"):
        prepare(Config(engine="toy", model="toy", **settings), TaskInputs(environment=BOTH))


def test_every_environment_is_tried_out_before_a_model_is_loaded():
    class Stuck(Shop):
        def __init__(self) -> None:
            raise OSError("no world.json")

    with pytest.raises(ConfigError, match=r"its environment 'stuck' raised OSError: no world\.json\. Mend it"):
        given(environment={**BOTH, "stuck": Stuck})


def test_the_tools_of_an_environment_are_described_as_its_own_prompts_need_them():
    class Brief(Calling):
        def add(self, number):  # no hints: enough for a text, not for a chat template
            return super().add(number)

    rows = [ROWS[0], {"prompt": "add", "environment": "sum", "start": 1}]
    prepared = given(rows, environment={"shop": Shop, "sum": Brief})
    assert {name: list(tools) for name, tools in check(*_of(prepared)).items()} == {"shop": ["buy"], "sum": ["add"]}
    with pytest.raises(ConfigError, match="method 'add' is a tool, but cannot be described"):
        given(environment={"shop": Shop, "sum": Brief})


def _of(prepared):
    return prepared.config, prepared.task


# ------------------------------------------------------------------------------------------------- settings

PLACES = {"one": "number_guessing", "two": "seedtune.tasks.builtin.number_guessing.NumberGuessing"}


def test_a_mapping_in_the_settings_names_environments(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    reward = 1.0\n    def reset(self): pass\n    def step(self, text): pass\n")
    config = Config(environment={"mine": f"{file}:Mine", **PLACES}, train_dataset="x.jsonl")
    assert config.identity()["environment"] == {"mine": "mine.py:Mine", **PLACES}
    assert config.sources()["environment"] == {"mine": f"{file}:Mine", **PLACES}
    rows = [{"prompt": "x", "environment": name, "low": 1, "high": 3, "answer": 2} for name in config.environment]
    config = config.replace(eval_size=0, engine="toy", model="toy", train_dataset=None)
    prepared = prepare(config, TaskInputs(train=rows))
    assert [reward.name for reward in prepared.task.rewards] == ["Mine", "NumberGuessing"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"^environment=\{\}: must name an environment, or be a mapping"),
        (["number_guessing"], r"^environment=\['number_guessing'\]: must name an environment, or be a mapping"),
        ({"one": 2}, r"^environment=\{'one': 2\}: has 'one': 2, but names and environments are text"),
        ({2: "number_guessing"}, "has 2: 'number_guessing', but names and environments are text"),
    ],
)
def test_a_setting_that_is_no_environment_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        Config.create({"environment": value})


def test_an_environment_of_the_mapping_that_is_not_there_is_named():
    with pytest.raises(
        ConfigError, match=r"environment\.two='number_gessing' is not .* Did you mean 'number_guessing'"
    ):
        prepare(
            Config(engine="toy", environment={"one": "number_guessing", "two": "number_gessing"}),
            TaskInputs(train=[{"prompt": "x", "environment": "one"}]),
        )
