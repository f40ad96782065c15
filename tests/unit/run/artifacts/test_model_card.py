"""Model cards: the hub accepts their metadata, they name only ids of the hub, and publish no local path."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from seedtune.config.config import Config
from seedtune.config.paths import public_name
from seedtune.run.artifacts.model_card import Provenance, Repository, Rights, card, is_of_seedtune, licence_metadata


def made(*, rights: Rights | None = None, evaluations=(), base: str = "", **settings) -> Provenance:
    return Provenance(Config.create(settings), 3, rights or Rights(), evaluations, base)


def read(found: Provenance, to: Repository | None = None) -> tuple[dict, str]:
    """The metadata of a card as huggingface_hub reads and checks them, and its text."""
    text = card(found, "0" * 32, to=to)
    return ModelCard(text).data.to_dict(), text


@pytest.mark.parametrize("typed", ["./models/base", "models/base", "{}/models/base"])
def test_a_folder_is_named_without_its_place_and_is_no_base_model_of_the_hub(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "config.json").touch()
    front, text = read(made(model=typed.format(tmp_path), task="secret/tasks.py:make"))
    assert "base_model" not in front
    assert "\n# base, fine-tuned by" in text
    assert "task `tasks.py:make`" in text
    assert str(tmp_path) not in text
    assert "secret" not in text


@pytest.mark.parametrize("name", ["org/name", "gpt2"])
def test_an_id_is_named_as_it_is(name):
    front, text = read(made(model=name))
    assert front["base_model"] == name
    assert f"Base model: [{name}](https://huggingface.co/{name})." in text


def test_a_model_that_comes_with_seedtune_is_no_id_of_the_hub():
    front, text = read(made(model="smollm2-135m"))
    assert "base_model" not in front
    assert "Base model: `smollm2-135m`, a model that comes with seedtune." in text


def test_the_revision_of_an_id_is_told_but_is_not_part_of_the_id():
    front, text = read(made(model="org/name@v1", base="org/name@0123abc"))
    assert front["base_model"] == "org/name"
    assert "Base model: [org/name](https://huggingface.co/org/name) at revision `0123abc`." in text


def test_data_sets_are_named_if_they_are_ids_and_files_never_are(tmp_path):
    (tmp_path / "secret.jsonl").touch()
    own = {"reward_funcs": "rewards.fn", "train_dataset": str(tmp_path / "secret.jsonl")}
    front, text = read(made(**own))
    assert "datasets" not in front
    assert "secret" not in text
    front, _ = read(made(**own | {"train_dataset": "org/data@v2", "eval_dataset": {"a": "squad", "b": "org/data"}}))
    assert front["datasets"] == ["org/data", "squad"]


def test_held_out_measures_are_in_the_metadata_and_in_a_table():
    rows = [
        {"generation": 0, "eval_reward": 0.25, "eval_accuracy": 0.5},
        {"generation": 2, "eval_reward": 9.0},
        {"generation": 3, "eval_reward": 0.5, "eval_accuracy": None},
        {"generation": 3, "reward": 1.0},
    ]
    front, text = read(made(evaluations=rows, task="conciseness"), Repository("me/brief", is_pack=False))
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == "brief"
    assert result["task"] == {"type": "text-generation"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("reward", 0.5)]
    assert "| reward | 0.25 | 0.5 |" in text
    assert "accuracy" not in text


def test_a_run_without_measures_has_no_table_of_them():
    front, text = read(made(evaluations=[{"generation": 0, "eval_reward": 0.25}]))
    assert "model-index" not in front
    assert "held out" not in text


@pytest.mark.parametrize(
    ("licence", "metadata"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("llama3.2", {"license": "llama3.2"}),
        ("Qwen Research", {"license": "other", "license_name": "qwen-research"}),
        ("llama: 3\nx", {"license": "other", "license_name": "llama-3-x"}),
        ("other", {"license": "other"}),
        (None, {}),
    ],
)
def test_a_licence_is_an_identifier_of_the_hub_or_the_name_of_another_one(licence, metadata):
    assert licence_metadata(licence) == metadata
    front, _ = read(made(rights=Rights(licence=licence, base_licence="mit")))
    assert {key: front[key] for key in ("license", "license_name") if key in front} == (metadata or {"license": "mit"})


def test_a_card_says_how_to_rebuild_and_to_verify():
    _, text = read(made(model="org/name"), Repository("me/it", is_pack=True))
    assert "pip install seedtune\nseedtune apply me/it -o my-model\n" in text
    assert "hf download me/it ledger.jsonl --local-dir run\nseedtune verify run\n" in text
    _, text = read(made(model="./folder"), Repository("me/it", is_pack=True))
    assert "seedtune apply me/it -o my-model --model BASE\n" in text
    assert "seedtune verify run --model BASE\n" in text


def test_a_card_is_known_by_its_tag():
    assert is_of_seedtune(card(made(), "0" * 32))
    assert not is_of_seedtune("---\ntags: [other]\n---\n# seedtune")
    assert not is_of_seedtune("---\n- 1\n---\n")
    assert not is_of_seedtune("")


def test_the_public_name_of_a_folder_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("base").mkdir()
    assert {public_name(name) for name in ("base", "./base", "~/base", str(tmp_path / "base"))} == {"base"}
