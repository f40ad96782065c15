"""Own data and rewards as settings: what they are short for, what goes together, what a run's identity holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, DatasetSettings
from seedtune.config.yaml_file import load_config
from seedtune.errors import ConfigError

OWN = {"train_dataset": "data.jsonl", "reward_funcs": "rewards.py:score"}


def own(**changes) -> Config:
    return Config.create({**OWN, **changes})


def error_of(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        own(**changes)
    return str(caught.value)


def test_text_is_short_for_a_mapping_and_one_reward_for_a_list():
    config = own(eval_dataset={"path": "org/data", "name": "main", "split": "test"})
    assert own(eval_dataset={"a": "org/data", "b": {"path": "org/data", "split": "x"}}).eval_datasets["b"].split == "x"
    assert own(**own(eval_dataset={"a": "org/data"}).model_dump(include={"eval_dataset"})).eval_datasets.keys() == {"a"}
    assert config.train_dataset == DatasetSettings(path="data.jsonl")
    assert (config.eval_dataset.path, config.eval_dataset.name, config.eval_dataset.split) == (
        "org/data",
        "main",
        "test",
    )
    assert [reward.path for reward in config.reward_funcs] == [f"{Path.cwd()}/rewards.py:score"]
    assert own(reward_funcs=["a.b", {"path": "c.d"}]).weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a/b": "x"}, "eval_dataset.a/b is no name of a set: metrics are called eval_NAME/reward."),
        ({"rewards": "x"}, "eval_dataset.rewards is no name of a set"),
        ({"a": {"paht": "x"}}, "eval_dataset.a.path={'paht': 'x'}: "),
        ({"path": "x", "splti": "y"}, "unknown setting 'eval_dataset.splti'. Did you mean 'split'? Known: name, path"),
        (3, "eval_dataset=3: must be a mapping"),
    ],
)
def test_what_is_no_held_out_set_is_told_with_its_place(given, message):
    assert message in error_of(eval_dataset=given)
    assert "both have 'toy'" in error_of(eval_dataset={"toy": "x"}, eval_tasks=["toy"])


def test_own_data_are_the_task():
    assert own().task == "custom"
    assert Config(**OWN).task == "custom"
    assert error_of(task="toy").startswith("task=toy brings data and rewards of its own: leave it out")


def test_a_dumped_configuration_of_own_data_is_read_back_exactly(tmp_path):
    config = own(
        reward_weights=[2.0, 1.0, 1.0],
        reward_funcs=["rewards.py:score", {"judge": {"model": "m", "api_key_env": "K"}}, "org/classifier"],
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_names_in_the_metrics_say_which_reward_it_is():
    rewards = [
        "rewards.py:score", "my.module.other", {"path": "f.py:g", "name": "own"}, "org/model-v2",
        "org/model@refs/pr/3", "org/model@main", {"judge": {}}, {"adapter": "reasoning_gym"},
    ]  # fmt: skip
    labels = [reward.label for reward in own(reward_funcs=rewards).reward_funcs]
    assert labels == ["score", "other", "own", "model-v2", "model", "model", "judge", "reasoning_gym"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_funcs": [{}]}, "a reward has one of path, judge, classifier; this one has none"),
        ({"reward_funcs": [{"path": "a.b", "judge": {}}]}, "this one has path, judge"),
        ({"reward_funcs": [{"judge": {}, "adapter": "verl"}]}, "adapter=verl is for a function: give its path"),
        ({"reward_funcs": [{"path": "a.b", "target": "x"}]}, "target='x' is for the adapters verl and pair"),
        (
            {"reward_funcs": [{"path": "a.b", "adaptor": "x"}]},
            "unknown setting 'reward_funcs.0.adaptor'. Did you mean 'adapter'",
        ),
        (
            {"reward_funcs": [{"judge": {"api_key": "sk-1"}}]},
            "unknown setting 'reward_funcs.0.judge.api_key'. Did you mean 'api_key_env'? Known: api_key_env",
        ),
        (
            {"reward_funcs": [{"path": "a.b", "adapter": "trll"}]},
            "adapter='trll': must be 'trl', 'verl', 'reasoning_gym' or",
        ),
        ({"reward_funcs": 5}, "reward_funcs=5: must be a list, like "),
        ({"train_dataset": 5}, "train_dataset=5: must be a mapping, like "),
        ({"train_dataset": {"path": "x", "splt": "y"}}, "unknown setting 'train_dataset.splt'. Did you mean 'split'"),
        ({"train_dataset": {"path": "x", "streaming": True}}, "unknown setting 'train_dataset.streaming'."),
        ({"reward_weights": [1, 2]}, "1 reward functions but 2 reward_weights: give one weight each"),
        ({"reward_funcs": [{"path": "a.b", "weight": 2}]}, "unknown setting 'reward_funcs.0.weight'. Known: adapter, "),
        ({"eval_size": 1.0}, "eval_size=1.0: must be less than 1"),
        ({"prompt_truncation": "right"}, "prompt_truncation='right': must be 'error', 'left' or 'drop'"),
        ({"reward_funcs": [{"judge": {"pattern": "(x"}}]}, "exactly one (group)"),
        ({"reward_funcs": [{"judge": {"pattern": "x"}}]}, "exactly one (group)"),
        ({"reward_funcs": [{"judge": {"field": "mark", "pattern": "(x)"}}]}, "field='mark' reads JSON, so pattern="),
        ({"reward_funcs": [{"judge": {"kind": "reward", "pattern": "(x)"}}]}, "kind=reward answers with JSON, so"),
        ({"reward_funcs": [{"judge": {"min_score": 10}}]}, "min_score=10 must be less than max_score=10"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told(changes, message):
    assert message in error_of(**changes)


JUDGED = {"judge": {"model": "m"}}


@pytest.mark.parametrize(
    "change",
    [
        {"train_dataset": "/moved/data.jsonl"},
        {"eval_dataset": "other.jsonl"},
        {"prompt_column": "question"},
        {"eval_size": 0.5},
        {"reward_funcs": "/moved/other.py:score"},
        {"reward_funcs": "package.module.score"},
        {"reward_funcs": {"path": "rewards.py:score", "name": "shown"}},
        {"reward_weights": [1.0]},
    ],
    ids=str,
)
def test_identity_leaves_out_where_data_and_rewards_lie(change):
    assert own(**change).identity() == own().identity()


@pytest.mark.parametrize(
    "change",
    [
        {"reward_funcs": "rewards.py:other"},
        {"reward_weights": [2.0]},
        {"reward_funcs": {"path": "rewards.py:score", "adapter": "pair"}},
        {"reward_funcs": ["rewards.py:score", "rewards.py:other"]},
        {"max_prompt_length": 5},
        {"prompt_truncation": "left"},
    ],
    ids=str,
)
def test_identity_holds_what_scores_and_prompts_depend_on(change):
    assert own(**change).identity() != own().identity()


def test_the_identity_of_a_judge_is_what_it_is_asked_not_where_or_with_which_key():
    plain = own(reward_funcs=JUDGED).identity()
    moved = {
        "model": "m",
        "base_url": "https://x.example/v1",
        "api_key_env": "K",
        "timeout": 3,
        "retries": 0,
        "concurrency": 1,
    }
    assert own(reward_funcs={"judge": moved}).identity() == plain
    for change in ({"model": "n"}, {"prompt": "{completion}"}, {"field": "mark"}, {"max_score": 5}):
        assert own(reward_funcs={"judge": {**JUDGED["judge"], **change}}).identity() != plain


def test_the_identity_of_a_classifier_is_its_name_and_label():
    plain = own(reward_funcs="org/model").identity()
    assert own(reward_funcs={"classifier": {"model": "/moved/model/", "device": "cuda"}}).identity() == plain
    for other in ({"label": "good"}, {"model": "org/model@main"}, {"model": "org/model@refs/pr/3"}):
        assert own(reward_funcs={"classifier": {"model": "org/model", **other}}).identity() != plain
    revised = own(reward_funcs="org/model@refs/pr/3").reward_funcs[0].identity()
    assert revised["classifier"]["model"] == "model@refs/pr/3"


def test_an_identity_is_itself_a_configuration():
    config = own(reward_funcs=["rewards.py:score", JUDGED, "org/model", {"path": OBJECTS, "name": "f"}])
    assert Config.create(config.identity()).identity() == config.identity()
    assert config.has_objects
    assert not own().has_objects
