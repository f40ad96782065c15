"""A run folder or a pack from elsewhere: no command runs its code, and the user's own runs go on as ever."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import models
import runs
from seedtune.config.config import Config
from seedtune.run import recorded_config
from seedtune.run.artifacts import pack_format
from seedtune.run.artifacts.pack import pack_run
from seedtune.trainer import ESTrainer

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("")

def reward(completions, **columns):
    return [float(len(text)) for text in completions]

def task():
    raise SystemExit
"""
ROWS = "".join(json.dumps({"prompt": f"row {number}"}) + "\n" for number in range(20))


@pytest.fixture(autouse=True)
def key_of_this_test(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))


def forged(root: Path, **settings: Any) -> Path:
    """A finished run whose folder names these settings, as its sender would have written them."""
    config = runs.toy(root, rank=1)
    ESTrainer(args=config).train()
    config = Config.create({**config.model_dump(), **settings})
    runs.write_config(config, root / "config.yaml")
    runs.edit_ledger(root, lambda data: data.update(config=config.identity()) if "config" in data else None)
    return root


@pytest.fixture
def evil(tmp_path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path / "evil.py"


def named(kind: str, evil: Path) -> dict[str, Any]:
    data = {"task": "custom", "train_dataset": str(evil.with_name("rows.jsonl"))}
    return {
        "task": {"task": f"{evil}:task"},
        "reward": {**data, "reward_funcs": f"{evil}:reward"},
        "environment": {"environment": f"{evil}:task"},
        "eval_tasks": {"eval_tasks": [f"{evil}:task"]},
    }[kind]


@pytest.mark.parametrize("kind", ["task", "reward", "environment", "eval_tasks"])
def test_no_command_runs_the_code_that_a_folder_names(kind, evil, tmp_path, command, failure) -> None:
    root = forged(tmp_path / "run", **named(kind, evil))
    code, output, errors = command("verify", root)
    assert code == 0, errors
    assert "verified: all" in output
    for arguments in (
        ("samples", root),
        ("inspect", root),
        ("report", root, "-o", tmp_path / "page.html"),
        ("diff", root, root),
        ("pack", root, "-o", tmp_path / "a.pack"),
        ("eval", root, "--task", "conciseness", "--limit", "2"),
    ):
        code, _, errors = command(*arguments)
        assert code == 0, errors
    for line in (
        failure("resume", root),
        failure("eval", root),
        failure("eval", "m", "--config", root / "config.yaml"),
    ):
        assert str(evil) in line
        assert "--set" in line
    assert not evil.with_name("ran").exists()


def test_a_ledger_alone_runs_no_code_that_it_names(evil, tmp_path, command) -> None:
    root = tmp_path / "run"
    ESTrainer(args=Config.create({**runs.toy(root).model_dump(), **named("reward", evil), "generations": 1})).train()
    evil.with_name("ran").unlink()
    (root / "config.yaml").unlink()
    code, _, errors = command("verify", root)
    assert code == 0, errors
    for arguments in (("resume", root, "--generations", "2"), ("eval", root)):
        code, _, errors = command(*arguments)
        assert code == 1
        assert "ledger.jsonl was not written by you on this machine" in errors
        assert f"{evil}:reward" in errors
    assert not evil.with_name("ran").exists()


def test_what_the_user_gives_is_run(evil, tmp_path, command, failure) -> None:
    root = forged(tmp_path / "run", generations=6, **named("reward", evil))
    words = shlex.split(failure("resume", root).partition("give yourself: ")[2])
    assert words[:3] == ["seedtune", "resume", str(root)]
    assert failure(*words[1:]).endswith("start a new run in another output_dir.")  # the forger's data are not these
    assert evil.with_name("ran").exists()


def test_ones_own_run_goes_on_with_its_code(evil, tmp_path, command) -> None:
    root = tmp_path / "run"
    ESTrainer(args=Config.create({**runs.toy(root).model_dump(), **named("reward", evil), "generations": 1})).train()
    for arguments in (("resume", root, "--generations", "2"), ("eval", root)):
        code, _, errors = command(*arguments)
        assert code == 0, errors


@pytest.mark.parametrize("change", ["edited", "another key", "no key can be kept"])
def test_an_edited_configuration_or_another_users_is_not_ones_own(change, evil, tmp_path, monkeypatch, failure) -> None:
    root = tmp_path / "run"
    if change == "no key can be kept":
        monkeypatch.setattr("seedtune.numerics.machine.cache_folders.private_folder", lambda *_: None)
    ESTrainer(args=Config.create({**runs.toy(root).model_dump(), **named("reward", evil), "generations": 1})).train()
    if change == "edited":
        file = root / "config.yaml"
        file.write_text(file.read_text().replace("reward_timeout: 60.0", "reward_timeout: 61.0"))
    if change == "another key":
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "another"))
    assert "was not written by you on this machine" in failure("resume", root)


@pytest.fixture
def model_with_code(tmp_path) -> Path:
    """A model folder whose configuration class is code that leaves a mark when it is run."""
    folder = models.save_family("llama", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return folder


def test_code_of_a_model_runs_only_if_the_user_says_so(model_with_code, tmp_path, failure) -> None:
    settings = {"engine": "transformers", "model": str(model_with_code), "trust_remote_code": True}
    root = forged(tmp_path / "run", **settings)
    for arguments in (
        ("verify", root),
        ("export", root, "-o", tmp_path / "out"),
        ("eval", root, "--task", "toy"),
    ):
        assert "trust_remote_code" in failure(*arguments)
    pack_run(root, tmp_path / "a.pack")
    pack = pack_format.read(tmp_path / "a.pack")
    about = dataclasses.replace(pack.about, config={**pack.about.config, "trust_remote_code": True})
    (tmp_path / "forged.pack").write_bytes(pack_format.dump(dataclasses.replace(pack, about=about)))
    message = failure("apply", tmp_path / "forged.pack", "--model", model_with_code, "-o", tmp_path / "out")
    assert "trust_remote_code" in message
    assert "--set trust_remote_code=true" in failure("resume", root)
    assert recorded_config.run_config(root).trust_remote_code is False
    assert not (tmp_path / "ran").exists()


def test_forged_texts_of_a_folder_and_a_pack_do_not_reach_the_terminal(tmp_path, command) -> None:
    root, clear = tmp_path / "run", "\x1b[2J\x9b2J\u202e"
    ESTrainer(args=runs.toy(root)).train()
    samples = root / "samples.jsonl"
    rows = [{**row, "prompt": f"p{clear}", "completion": f"{clear} {row['generation']}"} for row in runs.rows(samples)]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs.edit_ledger(root, lambda data: data.update(seedtune=clear, model=clear) if "config" in data else None)
    pack_run(root, tmp_path / "a.pack")
    pack = pack_format.read(tmp_path / "a.pack")
    about = dataclasses.replace(pack.about, base_fingerprint="0" * 32)
    (tmp_path / "b.pack").write_bytes(pack_format.dump(dataclasses.replace(pack, about=about)))
    other = tmp_path / "other"
    ESTrainer(args=runs.toy(other)).train()
    for arguments in (
        ("samples", root),
        ("inspect", root),
        ("diff", root, other),
        ("pack", root, "-o", tmp_path / "c.pack"),
        ("apply", tmp_path / "b.pack", "-o", tmp_path / "out", "--set", "toy.size=4"),
    ):
        _, output, errors = command(*arguments)
        assert "[2J" in output + errors
        assert not set(clear) & set(output + errors) - set("[2J")


def test_an_evaluation_is_not_saved_through_a_link(tmp_path, failure) -> None:
    root, other = tmp_path / "run", tmp_path / "theirs"
    ESTrainer(args=runs.toy(root)).train()
    other.write_text("kept")
    (root / "evaluations.jsonl").symlink_to(other)
    assert "evaluations.jsonl" in failure("eval", root, "--save")
    assert other.read_text() == "kept"
