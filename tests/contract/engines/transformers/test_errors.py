"""What a user can get wrong with the transformers engine: each error says the value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import answers, job, load_engine, save_family, text_prompts
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.errors import ConfigError, DataError, ModelError
from seedtune.types import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return load_engine(folder)


def test_a_prompt_too_long_for_the_context_is_named_with_the_fix(engine: TransformersEngine) -> None:
    with pytest.raises(DataError, match=r"prompt 0 has 60 tokens.*context of 64.*Shorten"):
        answers(engine, job(text_prompts("y" * 60)))


def test_an_empty_prompt_is_an_error(engine: TransformersEngine) -> None:
    with pytest.raises(DataError, match="Give it some text"):
        answers(engine, job(text_prompts("")))


def test_chat_messages_need_a_chat_template(tmp_path: Path) -> None:
    engine = load_engine(save_family("llama", tmp_path, template=None))
    with pytest.raises(DataError, match=r"no chat template.*plain-text prompts"):
        answers(engine, job([Prompt(0, ({"role": "user", "content": "Hi"},))]))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*Give a Hugging Face model folder"):
        load_engine(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Check the path"):
        load_engine(tmp_path / "missing")


def test_an_unknown_model_says_what_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cannot load.*Did you mean 'smollm2-135m'"):
        load_engine(Path("smollm2-136m"))


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Use cpu"):
        load_engine(folder, device="abacus")
