"""Push and apply through huggingface_hub itself, against a stand-in of the hub: what arrives, and what is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hub_stand_in
import runs
from seedtune import ESTrainer, apply_pack, export_run, verify_run
from seedtune.config.config import Config
from seedtune.errors import HubError
from seedtune.run import directory, ledger
from seedtune.run.artifacts.push import public_ledger

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
"""Of huggingface_hub's own uploads."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_stand_in.served() as hub:
        hub_stand_in.use(hub, tmp_path / "home", monkeypatch)
        yield hub


def card(files: dict[str, bytes]) -> ModelCard:
    return ModelCard(files["README.md"].decode())


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# ---------------------------------------------------------------------- what arrives


def test_a_pushed_model_is_its_export_with_card_and_ledger(command, hub, run, tmp_path):
    code, output, errors = command("push", run, "ada/brief", "--licence", "mit", "-m", "first")
    assert (code, errors) == (0, "")
    repository = hub.repositories["ada/brief"]
    assert repository.messages == ["initial commit", "first"]
    assert output.splitlines()[-2:] == [
        f"{hub.address}/ada/brief/commit/{repository.commits[-1][0]}",
        'load it with: AutoModelForCausalLM.from_pretrained("ada/brief")',
    ]
    export_run(run, tmp_path / "exported")
    assert repository.files["model.safetensors"] == bits(tmp_path / "exported")
    front = card(repository.files).data.to_dict()
    assert front["license"] == "mit"
    assert front["model-index"][0]["name"] == "brief"
    assert not repository.private
    assert not list(tmp_path.glob(".pushing-*"))


def test_a_pushed_pack_is_kilobytes_and_is_applied_to_the_same_bits(command, hub, run, tmp_path):
    code, output, errors = command("push", run, "ada/brief", "--pack", "--private")
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1] == "rebuild it with: seedtune apply ada/brief -o MODEL"
    repository = hub.repositories["ada/brief"]
    assert repository.private
    assert set(repository.files) == {".gitattributes", "README.md", "fine-tune.pack", "ledger.jsonl"}
    assert sum(map(len, repository.files.values())) < 16_000
    assert "seedtune apply ada/brief -o my-model" in repository.files["README.md"].decode()
    assert command("apply", "ada/brief", "-o", tmp_path / "applied")[0] == 0
    export_run(run, tmp_path / "exported")
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")


def test_the_pushed_ledger_is_verified_by_itself(hub, run, tmp_path):
    ESTrainer(args=runs.toy(run)).push_to_hub("brief", pack=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "ledger.jsonl").write_bytes(hub.repositories["ada/brief"].files["ledger.jsonl"])
    recorded = ledger.read(directory.RunPaths(run).ledger)
    assert verify_run(tmp_path / "theirs").fingerprint == recorded.fingerprints[5]


def test_an_earlier_generation_and_a_revision(hub, run, tmp_path):
    trainer = ESTrainer(args=runs.toy(run))
    trainer.push_to_hub("ada/brief", pack=True, generation=2)
    early = hub.repositories["ada/brief"].commits[-1][0]
    trainer.push_to_hub("ada/brief", pack=True)
    apply_pack(f"ada/brief@{early}", tmp_path / "applied")
    export_run(run, tmp_path / "exported", generation=2)
    assert bits(tmp_path / "applied") == bits(tmp_path / "exported")
    assert "2 generations of 4 members" in (tmp_path / "applied" / "README.md").read_text()


def test_a_trainer_pushes_the_model_that_it_holds_under_the_name_of_its_folder(hub, tmp_path):
    trainer = ESTrainer(args=runs.toy(tmp_path / "my-run"))
    trainer.train()
    url = trainer.push_to_hub(commit_message="done", private=True)
    repository = hub.repositories["ada/my-run"]
    assert url == f"{hub.address}/ada/my-run/commit/{repository.commits[-1][0]}"
    assert (repository.messages[-1], repository.private) == ("done", True)
    export_run(tmp_path / "my-run", tmp_path / "exported")
    assert repository.files["model.safetensors"] == bits(tmp_path / "exported")


def test_pushing_again_replaces_a_model_by_a_pack_and_keeps_files_of_others(command, hub, run):
    assert command("push", run, "ada/brief")[0] == 0
    hub.repositories["ada/brief"].files["photo.png"] = b"a photo"
    assert command("push", run, "ada/brief", "--pack")[0] == 0
    files = hub.repositories["ada/brief"].files
    assert {"photo.png", "fine-tune.pack"} <= files.keys()
    assert "model.safetensors" not in files


def test_no_path_of_this_machine_is_pushed(hub, tmp_path, monkeypatch):
    place = tmp_path / "secret"
    place.mkdir()
    rows = [{"prompt": f"{number}?", "answer": str(number)} for number in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "mine.py").write_text("def length(completions, **_):\n    return [len(text) for text in completions]\n")
    data = {"train_dataset": str(place / "rows.jsonl"), "reward_funcs": f"{place / 'mine.py'}:length"}
    config = Config.create({**runs.toy(tmp_path / "run").model_dump(), "task": "custom", **data})
    trainer = ESTrainer(args=config)
    trainer.train()
    runs.edit_ledger(tmp_path / "run", lambda row: row.update(model=str(place / "base")) if "model" in row else None)
    assert b"secret" in directory.RunPaths(tmp_path / "run").ledger.read_bytes()
    for pack in (False, True):
        trainer.push_to_hub("ada/brief", pack=pack)
        files = hub.repositories["ada/brief"].files
        assert b"".join(files.values()).count(b"secret") == 0
        assert str(tmp_path).encode() not in b"".join(files.values())


def test_a_torn_last_line_of_a_ledger_is_not_pushed(run):
    path = directory.RunPaths(run).ledger
    whole = public_ledger(path)
    path.write_bytes(path.read_bytes() + b'{"generation":5,"sig')
    assert public_ledger(path) == whole == path.read_bytes().rpartition(b"\n")[0] + b"\n"


# ------------------------------------------------------------------------- refusals


def refused(failure, hub, *arguments) -> str:
    """The one line of a push that changed no repository."""
    before = {name: list(repository.commits) for name, repository in hub.repositories.items()}
    message = failure("push", *arguments)
    after = {name: found.commits for name, found in hub.repositories.items() if name in before}
    assert after == before
    return message


def test_without_a_token_nothing_is_sent(failure, hub, run, tmp_path, monkeypatch):
    hub_stand_in.use(hub, tmp_path / "home", monkeypatch, token=None)
    message = refused(failure, hub, run, "ada/brief")
    assert message == "there is no token for the hub. Log in with 'hf auth login', or set HF_TOKEN to one."
    assert hub.requests == []


def test_a_wrong_token_and_one_that_only_reads(failure, hub, run, tmp_path, monkeypatch):
    hub_stand_in.use(hub, tmp_path / "home", monkeypatch, token="hf_typo")
    message = refused(failure, hub, run, "ada/brief")
    assert message.startswith(
        f"{hub.address} does not take the token: Invalid credentials in Authorization header. Log"
    )
    hub_stand_in.use(hub, tmp_path / "home", monkeypatch, token="hf_reads")
    message = refused(failure, hub, run, "ada/brief")
    assert 'You don\'t have the rights to create a model under "ada/brief"' in message
    assert "Use a token that may write there" in message


@pytest.mark.parametrize("name", ["a/b/c", "ada/my model", "https://huggingface.co/ada/brief", "ada/-x", ""])
def test_a_name_that_is_no_id(failure, hub, run, name):
    message = refused(failure, hub, run, name)
    assert message.startswith(f"{name!r} is no id of a repository: give USER/NAME, of letters, digits")
    assert not hub.repositories


def test_another_persons_repository(failure, hub, run):
    assert "refuses bob/brief to this token" in refused(failure, hub, run, "bob/brief")
    hub.add("bob/brief", {"README.md": b"---\ntags: [seedtune]\n---\n"})
    message = refused(failure, hub, run, "bob/brief")
    assert "refuses bob/brief to this token: Forbidden: pass a token with write access" in message
    hub.add("bob/theirs", {}, private=True)
    assert "bob/theirs" in refused(failure, hub, run, "bob/theirs")


@pytest.mark.parametrize("files", [{"model.bin": b"1"}, {"README.md": b"# Mine", "x": b""}])
def test_a_repository_that_seedtune_did_not_push_is_left_alone(failure, hub, run, files):
    hub.add("ada/other", files)
    message = refused(failure, hub, run, "ada/other")
    assert message.startswith("ada/other exists and holds what seedtune did not push (")
    assert message.endswith("Give another name, or delete that repository.")


def test_a_public_repository_does_not_become_private(failure, hub, run, command):
    assert command("push", run, "ada/brief", "--pack")[0] == 0
    assert "ada/brief exists and is public; --private is" in refused(failure, hub, run, "ada/brief", "--private")


@pytest.mark.parametrize("failing", ["/preupload/", "PUT /blobs/", "/commit/"])
def test_a_push_that_fails_half_way_changes_nothing_and_goes_on(failure, command, hub, run, failing, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries again, at longer and longer intervals
    assert command("push", run, "ada/brief", "--pack")[0] == 0
    hub.failing = failing
    message = refused(failure, hub, run, "ada/brief")
    assert message.endswith(
        "ada/brief is unchanged: a push is one commit. Push again; files that the hub has are not sent twice."
    )
    hub.failing = None
    sent = set(hub.blobs)
    hub.requests.clear()
    assert command("push", run, "ada/brief")[0] == 0
    assert not [line for line in hub.requests if line.startswith("PUT") and line.rpartition("/")[2] in sent]
    assert "model.safetensors" in hub.repositories["ada/brief"].files


def test_a_hub_that_is_not_there(failure, hub, run, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    hub_stand_in.use(hub, tmp_path / "home", monkeypatch)
    message = failure("push", run, "ada/brief")
    assert message.startswith(f"cannot reach {hub.address} for ada/brief: ")
    assert message.endswith("Check the network and HF_ENDPOINT. Nothing was sent.")
    assert "cannot be reached" in failure("apply", "ada/brief", "-o", tmp_path / "out")


def test_offline_a_push_is_refused_and_a_pack_comes_from_the_cache(failure, command, hub, run, tmp_path, monkeypatch):
    assert command("push", run, "ada/brief", "--pack")[0] == 0
    assert command("apply", "ada/brief", "-o", tmp_path / "one")[0] == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert command("apply", "ada/brief", "-o", tmp_path / "two")[0] == 0
    assert "HF_HUB_OFFLINE is set. Try again" in failure("apply", "ada/unknown", "-o", tmp_path / "out")
    assert failure("push", run, "ada/brief") == "HF_HUB_OFFLINE is set, and a push needs the hub. Unset it."
    assert hub.requests == []


def test_what_cannot_be_applied(failure, hub, run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert "has no repository ada/none, or it is private" in failure("apply", "ada/none", "-o", out)
    hub.add("ada/model", {"model.safetensors": b""})
    assert failure("apply", "ada/model", "-o", out).startswith("ada/model has no fine-tune.pack: it is no pack of seed")
    hub.add("ada/odd", {"fine-tune.pack": b"text"})
    assert "is not a pack" in failure("apply", "ada/odd", "-o", out)
    assert "has no such revision" in failure("apply", "ada/odd@v9", "-o", out)
    hub.add("bob/hidden", {"fine-tune.pack": b""}, private=True)
    assert "has no repository bob/hidden, or it is private" in failure("apply", "bob/hidden", "-o", out)
    assert failure("apply", "no/such.pack", "-o", out).endswith("No such file or directory. Check the path.")
    assert not out.exists()


def test_a_card_that_the_hub_does_not_take(hub, run, monkeypatch):
    monkeypatch.setattr("seedtune.run.artifacts.push.card", lambda *_, **__: "---\nmodel-index: 3\n---\n")
    with pytest.raises(HubError, match="does not take the card: Invalid metadata in README") as raised:
        ESTrainer(args=runs.toy(run)).push_to_hub("ada/brief", pack=True)
    assert "\n" not in str(raised.value)
    assert hub.repositories["ada/brief"].messages == ["initial commit"]


def test_a_precision_is_for_weights(failure, hub, run):
    message = refused(failure, hub, run, "ada/brief", "--pack", "--dtype", "float16")
    assert message.startswith("--dtype float16 is for weights, and --pack pushes none.")
    assert "--dtype 'int4' is not one of" in refused(failure, hub, run, "ada/brief", "--dtype", "int4")
    assert "generation 9 is not in" in refused(failure, hub, run, "ada/brief", "--generation", "9")
    assert hub.requests == []
