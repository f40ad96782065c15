"""Settings that are paths mean the same file in every working directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seedtune.config import paths
from seedtune.config.config import Config
from seedtune.engines.transformers.builtin_models import BUILTIN
from seedtune.errors import ConfigError
from seedtune.numerics.machine import cache_folders
from seedtune.tasks.from_config import TaskInputs, recorded

SETTINGS = {
    "model": ("model", lambda c: c.model),
    "output_dir": ("output_dir", lambda c: c.output_dir),
    "train_dataset": ("train_dataset", lambda c: c.train_dataset.path),
    "eval_dataset": ("eval_dataset.path", lambda c: c.eval_dataset.path),
    "classifier": ("reward_funcs.classifier.model", lambda c: c.reward_funcs[0].classifier.model),
    "weights_folder": ("transformers.weights_folder", lambda c: c.transformers.weights_folder),
    "download_dir": ("vllm.download_dir", lambda c: c.vllm.option("download_dir")),
    "reward": ("reward_funcs.path:f", lambda c: c.reward_funcs[0].path),
    "task": ("task:f", lambda c: c.task),
    "environment": ("environment:f", lambda c: c.environment),
    "environment by name": ("environment.shop:f", lambda c: c.environment["shop"]),
    "eval_tasks": ("eval_tasks:f", lambda c: c.eval_tasks[0]),
    "path of a built-in task": ("task_args.path", lambda c: c.task_args["path"]),
    "held-out data of a built-in task": ("task_args.test_path", lambda c: c.task_args["test_path"]),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a folder and a file in it, which is $HOME and $PLACE, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "mine" / "a b").mkdir(parents=True)
    for name in ("own.py", "config.json"):
        (tmp_path / "mine" / "a b" / name).touch()
    return tmp_path


def config_with(key: str, value: str) -> Config:
    """A configuration in which the setting ``a.b`` has this value; ``a.b:f`` names ``f`` in the file."""
    name, colon, word = key.partition(":")
    value = f"{value}/own.py:{word}" if colon else value
    *sections, last = name.split(".")
    settings: object = (value,) if name == "eval_tasks" else value
    for section in reversed([*sections, last][1:]):
        settings = {section: settings}
    more = {"train_dataset": {"train_dataset": "x.jsonl"}, "task_args": {"task": "gsm8k"}}
    given = more.get([*sections, last][0], {}) | {[*sections, last][0]: settings}
    return recorded(Config.create(given), TaskInputs())


@pytest.mark.parametrize(
    "typed", ["mine/a b", "./mine/../mine/a b", "~/mine/a b", "$PLACE/mine/a b", "${PLACE}/mine/a b"]
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_path_is_recorded_absolute(folder, setting, typed):
    key, value_of = SETTINGS[setting]
    config = config_with(key, typed)
    place = str(folder / "mine" / "a b")
    assert value_of(config) == (f"{place}/own.py:f" if ":" in key else place)
    assert config.replace() == config


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("typed", "message"),
    [("$NOWHERE/x", "the variable NOWHERE is not set"), ("~no-such-user/x", "the home of this user is unknown")],
)
def test_a_variable_or_user_that_does_not_exist_is_told(folder, setting, typed, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_with(SETTINGS[setting][0], typed)
    assert repr(typed)[:-1] in str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "typed",
    ["~/a\0b", "~/\udcff", f"~/{'x' * 256}", f"~/{'ä' * 128}", "~/" + "/x" * 2100],
    ids=["nul", "half", "long", "bytes", "deep"],
)
def test_a_path_that_no_file_can_have_is_told(folder, setting, typed):
    with pytest.raises(ConfigError, match="no file can have this path: give one in UTF-8, with names of 1 to 255"):
        config_with(SETTINGS[setting][0], typed)


@pytest.mark.parametrize("setting", ["output_dir", "model", "train_dataset"])
def test_an_empty_path_is_told(setting):
    with pytest.raises(ConfigError, match="no file can have this path"):
        Config.create({setting: ""})


def test_a_name_stays_a_name(folder):
    for name in ("smollm2-135m", "org"):
        (folder / name / "name").mkdir(parents=True)
    (folder / "smollm2-135m" / "config.json").touch()
    assert {Config(model=name).model for name in BUILTIN} == set(paths.BUILTIN_MODELS) == set(BUILTIN)
    assert Config(model="org/name").model == "org/name"
    assert Config(train_dataset={"path": "openai/gsm8k"}).train_dataset.path == "openai/gsm8k"
    assert Config(environment="module.Class").environment == "module.Class"
    assert Config(task="reasoning_gym:sums").task == "reasoning_gym:sums"


def test_a_secret_in_the_environment_is_never_part_of_a_name(folder, monkeypatch):
    monkeypatch.setenv("SECRET", "key")
    assert Config(model="org/$SECRET").model == f"{folder}/org/key"


def test_a_path_object_is_a_path(folder):
    config = Config(model=Path("mine/a b"), output_dir=Path("run"), train_dataset=Path("mine"))
    assert (config.model, config.output_dir, config.train_dataset.path) == (
        *map(str, (folder / "mine" / "a b", folder / "run", folder / "mine")),
    )


def test_the_usual_output_dir_is_absolute(folder):
    assert Config().output_dir == str(folder / "runs" / "run")


def test_a_file_in_the_settings_of_an_own_task_is_recorded_absolute(folder):
    (folder / "rows.jsonl").touch()
    (folder / "train").touch()
    args = {"data": "rows.jsonl", "kind": "mine", "mode": "train", "other": "gone.jsonl", "size": 3}
    config = recorded(Config(task="mine/a b/own.py:f", task_args=args), TaskInputs())
    assert config.task_args == {**args, "data": str(folder / "rows.jsonl")}
    assert config.identity()["task_args"] == args


def test_data_of_a_built_in_task_may_move(folder):
    config = config_with("task_args.path", "mine/a b")
    assert config.identity()["task_args"] == {"path": "a b"}


@pytest.mark.parametrize("typed", ["~/cache", "$PLACE/cache", "cache"])
def test_the_folder_of_caches_is_a_path_like_any_other(folder, monkeypatch, typed):
    monkeypatch.setenv("SEEDTUNE_CACHE", typed)
    assert next(cache_folders.candidates()) == folder / "cache"
    for unset in ("$NOWHERE/cache", "cache/$NOWHERE"):
        monkeypatch.setenv("SEEDTUNE_CACHE", unset)
        with pytest.raises(ConfigError, match=f"SEEDTUNE_CACHE='{re.escape(unset)}': the variable NOWHERE is not set"):
            next(cache_folders.candidates())
