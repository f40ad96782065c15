"""Which settings a file from elsewhere may give, and which only the user: every setting is one or the other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from seedtune.config import trusted_settings
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS
from seedtune.config.sections import section_in
from seedtune.config.yaml_file import override
from seedtune.errors import ConfigError

TEXTS = {
    "model": "weights, tokenizer and configuration are loaded without code",
    "output_dir": "always the folder that the user named",
    "prompt_column": "a name of a column",
    "likelihood.answer_column": "a name of a column",
    "likelihood.choices_column": "a name of a column",
    "trainable": "patterns of tensor names",
    "system_prompt": "text for the model",
    "chat_template_kwargs": "values for the template, which runs in a sandbox",
    "stop": "text to look for in completions",
    "transformers.device": "a name of a device, of which torch knows a closed list",
    "ray.workers": "numbers by kind of engine",
}
"""Harmless settings that take text, and why."""


def settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, annotation) of every setting; data and rewards are one setting each."""
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is not None and f"{prefix}{name}" not in trusted_settings.ONLY_TRUSTED:
            yield from settings(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


def takes_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return False
    return annotation in (str, Any) or any(map(takes_text, get_args(annotation)))


def test_every_setting_that_takes_text_is_decided() -> None:
    texts = {name for name, annotation in settings() if takes_text(annotation)} | {"trust_remote_code", "ray.detached"}
    sections = {"train_dataset", "eval_dataset", "reward_funcs"}
    assert texts | sections == TEXTS.keys() | trusted_settings.ONLY_TRUSTED.keys()


JUDGE = {"judge": {"base_url": "http://elsewhere/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}}
OWN = {"task": "custom", "train_dataset": "rows.jsonl"}
NAMED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"trust_remote_code": True}, ("trust_remote_code",)),
    ({"task": "evil.py:task"}, ("task",)),
    ({"task": "gsm8k", "task_args": {"path": "/etc/passwd"}}, ("task_args",)),
    ({"task": "reasoning_gym:chain_sum", "task_args": {"settings": {"names": ["file"]}}}, ("task_args",)),
    ({"eval_tasks": ["toy", "evil.py:task"]}, ("eval_tasks",)),
    ({"environment": "evil.py:Env"}, ("environment",)),
    ({"environment": "evil.Env"}, ("environment",)),
    ({"environment": "'evil.Env'"}, ("environment",)),
    ({"environment": {"one": "number_guessing", "two": "evil.py:Env"}}, ("environment",)),
    ({"environment": {"two": "evil.Env"}}, ("environment",)),
    ({**OWN, "reward_funcs": "evil.py:reward"}, ("reward_funcs", "train_dataset")),
    ({**OWN, "reward_funcs": "os.system"}, ("reward_funcs", "train_dataset")),
    ({**OWN, "reward_funcs": "org/model"}, ("reward_funcs", "train_dataset")),
    ({**OWN, "reward_funcs": JUDGE, "eval_dataset": "org/data"}, ("eval_dataset", "reward_funcs", "train_dataset")),
    ({"report_to": ["tensorboard", "wandb"]}, ("report_to",)),
    ({"transformers": {"weights_folder": "/etc"}}, ("transformers.weights_folder",)),
    ({"engine": "ray", "ray": {"address": "ray://elsewhere:1", "detached": True}}, ("ray.address", "ray.detached")),
    ({"task": "gsm8k", "task_args": {"path": "/rows/\U0001f600: #.jsonl"}}, ("task_args",)),
    (
        {**OWN, "reward_funcs": [{"path": f"/a/{n}/rewards.py:reward"} for n in range(30)]},
        ("reward_funcs", "train_dataset"),
    ),
    ({"engine": "ray", "ray": {"address": "auto", "resources": {"a": 1}}}, ("ray.address", "ray.resources")),
    ({"engine": "vllm", "vllm": {"hf_token": True, "download_dir": "/x"}}, ("vllm.download_dir", "vllm.hf_token")),
]


def test_cores_and_gpus_of_a_worker_contact_no_cluster() -> None:
    assert trusted_settings.of(Config.create({"engine": "ray", "ray": {"resources": {"CPU": 2, "GPU": 1}}})) == {}


@pytest.mark.parametrize(("given", "names"), NAMED)
def test_what_runs_code_opens_files_or_contacts_hosts_is_left_out(
    given: dict[str, Any], names: tuple[str, ...]
) -> None:
    config = Config.create({**given, "sigma": 0.25})
    assert sorted(trusted_settings.of(config)) == sorted(names)
    kept = trusted_settings.without(config)
    assert trusted_settings.of(kept) == {}
    assert (kept.sigma, kept.model, kept.kinds) == (0.25, config.model, config.kinds)


@pytest.mark.parametrize(("given", "names"), NAMED)
def test_the_error_names_all_of_it_and_the_command_that_gives_it(given: dict[str, Any], names: tuple[str, ...]) -> None:
    config = Config.create(given)
    with pytest.raises(ConfigError) as refused:
        trusted_settings.check_given(config, (), source="F", command="seedtune resume RUN")
    line = str(refused.value)
    assert "\n" not in line
    assert all(name in line for name in names)
    words = shlex.split(line[line.index("seedtune resume RUN") :])
    sets = [word for before, word in pairwise(words) if before == "--set"]
    trusted_settings.check_given(config, sets, source="F", command="")
    assert Config.create(override(trusted_settings.without(config).model_dump(), sets)) == config


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"task": "reasoning_gym:chain_sum", "task_args": {"train_size": 4, "settings": {"max_terms": 3}}},
        {"task": "countdown", "task_args": {"numbers": 4}, "eval_tasks": ["conciseness"]},
        {"environment": "number_guessing"},
        {"environment": {"one": "number_guessing", "two": "number_guessing"}},
        {"task": "custom", "reward_funcs": [{"path": OBJECTS}], "train_dataset": OBJECTS, "environment": OBJECTS},
        {"task": "custom", "reward_funcs": [{"adapter": "reasoning_gym"}]},
        {"engine": "vllm", "vllm": {"max_loras": 4}, "transformers": {"device": "cuda:1"}},
    ],
)
def test_everything_else_is_taken(given: dict[str, Any]) -> None:
    config = Config.create(given)
    assert trusted_settings.of(config) == {}
    assert trusted_settings.without(config) == config


def test_a_value_made_to_fool_a_terminal_is_not_repeated() -> None:
    config = Config.create({"task": "custom", "train_dataset": "a\x1b[2J" + "/b" * 2_000, "reward_funcs": "a.py:\x9bf"})
    with pytest.raises(ConfigError) as refused:
        trusted_settings.check_given(config, (), source="F", command="seedtune resume RUN")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("sets", [["train_dataset.path=/rows.jsonl"], ["train_dataset.split=test"], ["task=custom"]])
def test_a_part_of_a_section_is_not_the_section(sets: list[str]) -> None:
    config = Config.create({"train_dataset": {"path": "rows.jsonl", "split": "train"}})
    with pytest.raises(ConfigError, match="names what runs code, opens files or contacts hosts: train_dataset"):
        trusted_settings.check_given(config, sets, source="F", command="")
    trusted_settings.check_given(config, ["train_dataset=rows.jsonl"], source="F", command="")
