"""The first ten minutes on one's own data, acted out in processes of their own: init, train without σ, report, push and
apply, with a base model of the hub; and a wrong value at each step, answered in one line with the fix, in this one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hub_stand_in
import runs
from models import save_family

pytestmark = pytest.mark.slow

ROWS = [{"question": f"{number} + 1?", "gold": str(number + 1)} for number in range(20)]
REWARD = """
def short(completions, gold, **_):
    return [float(one in text) - len(text) / 100 for text, one in zip(completions, gold)]
"""
SMALL = ("--set", "generations=2", "--set", "population=4", "--set", "max_completion_length=8", "--set", "save_steps=0")
LAST = ("--generation", "last")
"""Of two generations of a random model none is clearly better than the base model, which is taken by default."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_stand_in.Hub]:
    with hub_stand_in.served() as hub:
        base = save_family("llama", tmp_path / "base")
        files = {file.name: file.read_bytes() for file in base.iterdir()}
        hub.add("org/tiny", {**files, "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n"})
        yield hub


def test_from_a_data_file_to_the_hub_and_back(hub, tmp_path, monkeypatch, failure):
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "rewards.py").write_text(REWARD)
    ours = hub.environment(tmp_path / "home")

    def done(*arguments: str, **variables: str) -> str:
        found = runs.cli(*arguments, **(ours | variables))
        assert found.returncode == 0, found.stderr
        return found.stdout

    def wrong(*arguments: str, token: str | None = "hf_ada") -> str:
        with pytest.MonkeyPatch.context() as patch:
            hub_stand_in.use(hub, tmp_path / "home", patch, token=token)
            return failure(*arguments)

    init = ("init", "--model", "org/tiny", "--reward", "rewards.py:short", "-o", "my.yaml", "--train-dataset")
    assert "Did you mean 'data.jsonl'?" in wrong(*init, "dta.jsonl")
    done(*init, "data.jsonl")
    assert "sigma" not in re.sub("#.*", "", (place / "my.yaml").read_text())

    assert "org/tinny" in wrong("train", "my.yaml", *SMALL, "--set", "model=org/tinny")
    assert "sigma" in wrong("train", "my.yaml", *SMALL, "--set", "sigma=small")
    done("train", "my.yaml", *SMALL)
    (run,) = (place / "runs").iterdir()

    assert "runs/nothing" in wrong("report", "runs/nothing", "-o", "page.html")
    done("report", str(run), "-o", "page.html")
    assert (place / "page.html").is_file()

    assert "hf auth login" in wrong("push", str(run), "ada/sums", "--pack", *LAST, token=None)
    assert "is no id of a repository" in wrong("push", str(run), "ada/my sums", "--pack", *LAST)
    assert "generation 7 is not in" in wrong("push", str(run), "ada/sums", "--generation", "7")
    assert "seedtune apply ada/sums -o MODEL" in done("push", str(run), "ada/sums", "--pack", *LAST)

    files, commit = hub.repositories["ada/sums"].files, hub.repositories["org/tiny"].commits[-1][0]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("org/tiny", "apache-2.0")
    assert f"at revision `{commit}`" in card.text
    assert "pip install seedtune\nseedtune apply ada/sums -o my-model\n" in card.text
    assert b"".join(files.values()).count(str(tmp_path).encode()) == 0

    done("export", str(run), "-o", "exported", *LAST)
    hub.repositories["org/tiny"].commit({"README.md": b"emptied"}, "the base model moves on; its commit stays")
    theirs = hub.environment(tmp_path / "elsewhere", token=None)
    assert "no repository ada/sms" in wrong("apply", "ada/sms", "-o", "model", token=None)
    done("apply", "ada/sums", "-o", "model", **theirs)
    rebuilt, exported = (place / folder / "model.safetensors" for folder in ("model", "exported"))
    assert rebuilt.read_bytes() == exported.read_bytes()

    (place / "theirs").mkdir()
    (place / "theirs" / "ledger.jsonl").write_bytes(files["ledger.jsonl"])
    assert "verified: all" in done("verify", "theirs", **theirs)
