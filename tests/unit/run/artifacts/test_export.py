"""The card of an exported model names the base model and the task, and publishes no local path."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from seedtune.config.config import Config
from seedtune.config.paths import public_name
from seedtune.run.artifacts.export import Rights, _card


def card(**settings) -> tuple[dict, str]:
    engine = SimpleNamespace(fingerprint=lambda: "0" * 32)
    text = _card(engine, Config.create(settings), 3, Rights())
    return yaml.safe_load(text.split("---")[1]), text


@pytest.mark.parametrize("typed", ["./models/base", "models/base", "{}/models/base"])
def test_a_folder_is_named_without_its_place_and_is_no_base_model_of_the_hub(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "config.json").touch()
    front, text = card(model=typed.format(tmp_path), task="secret/tasks.py:make")
    assert "base_model" not in front
    assert "\n# base, fine-tuned by" in text
    assert "task `tasks.py:make`" in text
    assert str(tmp_path) not in text
    assert "secret" not in text


@pytest.mark.parametrize("name", ["org/name", "gpt2", "smollm2-135m"])
def test_an_id_is_named_as_it_is(name):
    front, text = card(model=name)
    assert front["base_model"] == name
    assert f"\n# {name}, fine-tuned by" in text


def test_the_revision_of_an_id_is_told_but_is_not_part_of_the_id():
    front, text = card(model="org/name@v1")
    assert front["base_model"] == "org/name"
    assert "\n# org/name@v1, fine-tuned by" in text


def test_the_public_name_of_a_folder_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("base").mkdir()
    assert {public_name(name) for name in ("base", "./base", "~/base", str(tmp_path / "base"))} == {"base"}
