"""seedtune verify: base model + ledger = weights, and every way in which they are not is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import runs
from seedtune import export_run, verify_run
from seedtune.engines import base, create, snapshots
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import LedgerError, RunError
from seedtune.run import directory
from seedtune.trainer import ESTrainer


def trained(root: Path, **settings) -> Path:
    ESTrainer(args=runs.toy(root, **settings)).train()
    return root


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------ honest runs


def test_an_honest_run_verifies_and_is_left_alone(command, run):
    before = files(run)
    code, output, errors = command("verify", run, "--snapshots")
    assert (code, errors) == (0, "")
    base = json.loads(runs.ledger_bytes(run).splitlines()[0])["base_fingerprint"]
    lines = output.splitlines()
    assert lines[:3] == [
        "ledger: 5 generations, every checksum good",
        "coefficients: those of 5 generations follow from the recorded rewards, bit for bit",
        f"base model: fingerprint {base}, as recorded",
    ]
    assert lines[3].startswith("rewards: computed with products library, ")
    assert lines[4].startswith("replayed 5 generations from the base model in ")
    assert lines[5:] == ["snapshots: 4, 5 hold the replayed weights", "verified: all 3 recorded fingerprints match"]
    assert files(run) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"antithetic": False, "population": 3},
        {"rank": 3},
        {"generations": 50, "fingerprint_steps": 7},
        {"generations": 40, "fingerprint_steps": 1},
        {"perturbation": "gaussian", "trainable": ("layers.1.*",)},
        {"perturbation": "flipout", "shared_noise": 2, "weights_dtype": "model", "dtype": "bfloat16"},
        {"weights_dtype": "model", "dtype": "bfloat16", "generations": 30},
        {"perturbation": "gaussian", "weights_dtype": "model", "dtype": "float16"},
    ],
    ids=str,
)
def test_runs_of_other_settings_verify(tmp_path, settings):
    root = trained(tmp_path / "run", **settings)
    found = verify_run(root)
    assert found.fingerprint == runs.fingerprint(root)
    assert found.audit.exact == found.generations == found.matched[-1]


def test_coefficients_per_prompt_are_checked_up_to_a_factor_and_that_is_said(command, tmp_path):
    code, output, _ = command("verify", trained(tmp_path / "run", shaping="per_prompt"))
    assert code == 0
    assert "coefficients: those of 5 generations follow from the recorded rewards up to one factor each" in output


def test_snapshots_are_not_used_and_not_needed(run):
    reference = verify_run(run)
    for folder in directory.RunPaths(run).snapshots.iterdir():
        (folder / "weights.safetensors").write_bytes(b"x")
    assert verify_run(run).fingerprint == reference.fingerprint
    shutil.rmtree(directory.RunPaths(run).snapshots)
    assert verify_run(run, snapshots=True).snapshots == ()


def test_a_ledger_alone_is_enough(run, tmp_path):
    (tmp_path / "sent").mkdir()
    shutil.copy(directory.RunPaths(run).ledger, tmp_path / "sent")
    assert verify_run(tmp_path / "sent").matched == (2, 4, 5)
    for root in (run, tmp_path / "sent"):
        export_run(root, tmp_path / f"model of {root.name}")
    models = [(tmp_path / f"model of {name}" / "model.safetensors").read_bytes() for name in (run.name, "sent")]
    assert models[0] == models[1]


def test_a_torn_last_line_and_generations_without_a_fingerprint_are_told(command, run):
    path = directory.RunPaths(run).ledger
    path.write_bytes(path.read_bytes()[:-10])
    code, output, _ = command("verify", run)
    assert code == 0
    torn = len(runs.ledger_bytes(run).split(b"\n")[-1])
    assert f"every checksum good; {torn} bytes of an unfinished last line are not part of the run" in output
    assert f"no fingerprint is recorded after generation 4; replay ends with {runs.fingerprint(run)}" in output
    assert output.splitlines()[-1] == "verified: all 2 recorded fingerprints match"


def test_a_run_without_fingerprints_says_that_there_is_nothing_to_compare_with(command, tmp_path):
    root = trained(tmp_path / "run", generations=2)
    lines = runs.ledger_bytes(root).splitlines(keepends=True)
    directory.RunPaths(root).ledger.write_bytes(b"".join(lines[:2]))
    code, output, _ = command("verify", root)
    assert code == 0
    assert output.splitlines()[-1] == "verified: no fingerprint is recorded to compare"


def test_generations_are_applied_in_batches_cut_at_recorded_fingerprints(tmp_path, monkeypatch):
    root = trained(tmp_path / "run", generations=50, fingerprint_steps=20)
    sizes, progress = [], []
    apply = ToyEngine.apply

    def counted(engine, *batch):
        sizes.append(len(batch))
        apply(engine, *batch)

    monkeypatch.setattr(ToyEngine, "apply", counted)
    assert verify_run(root, progress=lambda done, goal: progress.append((done, goal))).matched == (20, 40, 50)
    assert sizes == [16, 4, 16, 4, 10]
    assert progress == [(done, 50) for done in (0, 16, 20, 36, 40, 50)]
    monkeypatch.setattr(base, "BATCH_TERMS", 5)
    sizes.clear()
    assert verify_run(root).matched == (20, 40, 50)
    assert set(sizes) == {2}


# ------------------------------------------------------------------ what does not verify


def test_a_flipped_bit_in_the_ledger_is_named_by_its_line(failure, run):
    path = directory.RunPaths(run).ledger
    whole = path.read_bytes()
    for line, start in enumerate([0, *(i + 1 for i, byte in enumerate(whole[:-1]) if byte == ord("\n"))], start=1):
        path.write_bytes(whole[: start + 30] + bytes([whole[start + 30] ^ 1]) + whole[start + 31 :])
        assert failure("verify", run).startswith(f"{path} line {line} is corrupted: its checksum does not match")


def test_another_base_model_is_named_with_both_fingerprints(failure, run):
    other = create(runs.toy(run).replace(model="other")).load().base_fingerprint
    message = failure("verify", run, "--model", "other")
    assert message.startswith(f"{run} was trained from a base model with fingerprint ")
    assert message.endswith(f"but 'other' has {other}. Give the same base model.")


def test_another_tokenizer_is_named_with_both_fingerprints_and_refused_only_by_resume(
    failure, command, run, monkeypatch, caplog
):
    load = ToyEngine.load
    monkeypatch.setattr(ToyEngine, "load", lambda self, *a: replace(load(self, *a), tokenizer_fingerprint="words"))
    wanted = f"{run} was trained with another tokenizer or chat template (characters) than 'toy' has"
    assert failure("resume", run, "--generations", "9").startswith(wanted)
    for arguments in (
        ["verify", run],
        ["eval", run],
        ["export", run, "-o", run / "model"],
    ):
        caplog.clear()
        code, _, errors = command(*arguments)
        assert code == 0, errors
        assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(wanted)], arguments


@pytest.mark.parametrize("bit", [0, 31, 52, 63])
def test_a_flipped_bit_of_a_coefficient_is_named_though_the_ledger_was_sealed_again(failure, run, bit):
    def change(data):
        data["coefficients"][2] = runs.flip_bit(data["coefficients"][2], bit)

    runs.edit_generation(run, 3, change)
    assert failure("verify", run).startswith(f"{run}: generation 3: the coefficient of member 1+ is ")


def test_a_reward_changed_alone_is_named_by_its_generation(failure, run):
    runs.edit_generation(run, 1, lambda data: data["rewards"].__setitem__(0, 0.5))
    assert failure("verify", run).startswith(f"{run}: generation 1: the coefficient of member 0+ is ")


def swap(data):
    """Members 0 and 1 change places: rewards and coefficients still go together."""
    for column in ("rewards", "coefficients"):
        values = data[column]
        values[0], values[1] = values[1], values[0]


def test_rewards_and_coefficients_changed_together_are_found_by_the_next_fingerprint(failure, run):
    runs.edit_generation(run, 2, swap)
    message = failure("verify", run)
    assert message.startswith(f"{run} does not verify: after 4 generations the ledger recorded fingerprint ")
    assert "; after 2 they agree. Possible causes: the record of generations 2 to 3 was edited" in message


def test_a_changed_generation_is_named_exactly_where_every_fingerprint_is_recorded(tmp_path):
    root = trained(tmp_path / "run", fingerprint_steps=1)
    runs.edit_generation(root, 0, swap)
    with pytest.raises(LedgerError, match=r"after 1 generations .*the base model agrees.*record of generation 0 was"):
        verify_run(root)


def edit_fingerprint(root: Path, after: int) -> None:
    def change(data):
        if data.get("after") == after:
            data["fingerprint"] = "ab" * 16

    runs.edit_ledger(root, change)


def test_a_changed_fingerprint_is_told_from_changed_updates(run):
    edit_fingerprint(run, 2)
    message = (
        rf"after 2 generations the ledger recorded fingerprint {'ab' * 16}, replay gives .*; after 4 generations they"
    )
    with pytest.raises(LedgerError, match=message + " agree again. So the updates are right"):
        verify_run(run)


def test_a_changed_last_fingerprint_may_be_either(run):
    edit_fingerprint(run, 5)
    with pytest.raises(LedgerError, match=r"after 5 generations .* or that the last fingerprint itself was"):
        verify_run(run)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.update(alpha=0.3), "recorded is alpha 0.3, but the rewards give 0.2"),
        (lambda data: data["members"].__setitem__(0, "7:0+"), r"recorded is member 7:0\+, but the strategy asks"),
        (lambda data: data.update(state={"x": 1}), "recorded is state of the strategy"),
    ],
)
def test_a_changed_plan_or_state_is_named(run, change, reason):
    runs.edit_generation(run, 4, change)
    with pytest.raises(LedgerError, match=f"generation 4.*{reason}"):
        verify_run(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(agreement=0.9),
        lambda data: data.pop("agreement"),
        lambda data: data.update(watched=data["watched"][:-1]),
        lambda data: data["watched"].__setitem__(0, 1e308),
        lambda data: data["state"]["watch"].update(best=[]),
        lambda data: data["state"]["step_size"].update(seen=0),
    ],
    ids=["agreement", "no agreement", "a prompt less", "too large", "no best", "no generations"],
)
def test_evidence_from_which_no_step_follows_is_named(tmp_path, change):
    ESTrainer(args=runs.toy(tmp_path / "run", alpha=None, population=80, prompts_per_generation=8)).train()
    runs.edit_generation(tmp_path / "run", 2, change)
    with pytest.raises(LedgerError, match=r"generation [23]"):
        verify_run(tmp_path / "run")


def test_a_changed_header_is_named_by_the_setting(run):
    runs.edit_ledger(run, lambda data: data["config"].update(seed=9) if "config" in data else None)
    with pytest.raises(RunError, match="seed: 9 → 0"):
        verify_run(run)


def test_a_changed_seed_in_a_ledger_that_came_alone_gives_other_fingerprints(run):
    runs.edit_ledger(run, lambda data: data["config"].update(seed=9) if "config" in data else None)
    directory.RunPaths(run).config.unlink()
    with pytest.raises(LedgerError, match="does not verify: after 2 generations"):
        verify_run(run)


def test_another_noise_scheme_is_named(run):
    runs.edit_ledger(run, lambda data: data.update(noise="v9") if "noise" in data else None)
    with pytest.raises(LedgerError, match="uses noise scheme 'v9'; this version makes 'v1'"):
        verify_run(run)


def test_weights_of_another_element_type_are_named(failure, run):
    runs.edit_ledger(
        run, lambda data: data.update(resolved_weights_dtype="float16") if "resolved_weights_dtype" in data else None
    )
    message = failure("verify", run)
    assert message.startswith(f"{run} was trained with weights in float16; here it would be float32, the type of 'toy'")


@pytest.mark.parametrize("damage", ["torn", "another run's"])
def test_a_snapshot_that_holds_other_weights_is_named_if_asked_for(failure, command, run, damage):
    newest = snapshots.listing(directory.RunPaths(run).snapshots)[0]
    weights = newest.folder / "weights.safetensors"
    if damage == "torn":
        weights.write_bytes(weights.read_bytes()[:-3])
    else:
        engine = create(runs.toy(run))
        engine.load()
        engine.snapshot(newest.folder)
    assert command("verify", run)[0] == 0
    message = failure("verify", run, "--snapshots")
    assert message.startswith(f"the ledger verifies, but the snapshot {newest.folder} holds ")
    assert message.endswith("Delete it: snapshots only save time.")


def test_settings_that_results_depend_on_cannot_be_changed(failure, command, run):
    assert "sigma: 0.05 → 0.06" in failure("verify", run, "--set", "sigma=0.06")
    assert command("verify", run, "--set", "toy.delay=0.5")[0] == 0


def test_what_is_no_run_is_named(failure, tmp_path):
    assert failure("verify", tmp_path) == (
        f"{tmp_path} is not a run directory: it has no ledger.jsonl. Check the path."
    )
