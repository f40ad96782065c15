"""seedtune diff: the first place where two runs part, and why, causes before effects."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import runs
from seedtune import __version__, diff_runs
from seedtune.run import directory
from seedtune.trainer import ESTrainer


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A copy of the run to change."""
    return shutil.copytree(run, tmp_path / "copy")


def trained(root: Path, **settings) -> Path:
    ESTrainer(args=runs.toy(root, **settings)).train()
    return root


def test_two_runs_of_the_same_settings_are_equal(command, run, tmp_path):
    again = trained(tmp_path / "again")
    assert command("diff", run, again) == (0, "equal: 5 generations and 3 recorded fingerprints\n", "")
    assert diff_runs(run, again).equal


def test_what_results_do_not_depend_on_is_no_difference(command, run, copy):
    def rename(data):
        if "format" in data:
            data.update(model="elsewhere/toy", seedtune="0.0.9")

    runs.edit_ledger(copy, rename)
    code, output, _ = command("diff", run, copy)
    assert code == 0
    assert output.splitlines() == [
        "note: base model is named toy and elsewhere/toy",
        f"note: made by seedtune {__version__} and 0.0.9",
        "equal: 5 generations and 3 recorded fingerprints",
    ]


def test_a_run_that_goes_on_is_told_from_one_that_parts(command, run, tmp_path):
    short = trained(tmp_path / "short", generations=3)
    for first, second in [(run, short), (short, run)]:
        code, output, _ = command("diff", first, second)
        assert code == 1
        assert output.splitlines() == [
            "equal: 3 generations and 1 recorded fingerprint",
            f"{short} ends there; {run} goes on to generation 5",
        ]


def test_other_settings_are_named_and_where_they_first_show(run, tmp_path):
    found = diff_runs(run, trained(tmp_path / "other", sigma=0.06, population=6))
    assert found.header == ("population: 4 and 6", "sigma: 0.05 and 0.06")
    assert found.generation == 0
    assert found.reasons[:2] == ("members: 4 and 6", "sigma: 0.05 and 0.06")


def test_another_base_model_and_other_data_are_named(run, tmp_path):
    other = ESTrainer(
        args=runs.toy(tmp_path / "other"),
        model="toy2",
        reward_funcs=lambda completions, **_: [float(text) for text in completions],
        train_dataset=[{"prompt": "one"}, {"prompt": "two"}],
    )
    other.train()
    found = diff_runs(run, tmp_path / "other")
    assert [line.split(":")[0] for line in found.header] == [
        "base model",
        "reward_funcs",
        "reward_weights",
        "task",
        "training data",
        "training prompts as the model reads them",
    ]
    assert found.notes == ("base model is named toy and toy2",)


CHANGES = {
    "members": (lambda d: d["members"].__setitem__(1, "9-"), "members (1 of 4 differ): 0- and 9-"),
    "sigma": (lambda d: d.update(sigma=0.5), "sigma: 0.05 and 0.5"),
    "alpha": (lambda d: d.update(alpha=0.5), "alpha: 0.2 and 0.5"),
    "prompts": (lambda d: d.update(prompts=[8, 9]), None),
    "tokens": (lambda d: d["tokens"].update(prompt=1), None),
    "rewards": (lambda d: d["rewards"].__setitem__(2, None), None),
    "unperturbed": (lambda d: d.update(reward_unperturbed=None), None),
    "coefficients": (lambda d: d["coefficients"].__setitem__(3, 0.125), None),
    "state": (lambda d: d["state"].update(members=7), "state members: None and 7"),
}
BEGINS = {"prompts": "prompts: ", "tokens": "tokens prompt: ", "rewards": "rewards (1 of 4 differ): 1+: "}
BEGINS |= {
    "state": "state averages: ",
    "unperturbed": "reward of the unperturbed model: ",
    "coefficients": "coefficients (1 of 4 differ): 1-: ",
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_named_at_its_generation_with_both_values(run, copy, what):
    change, reason = CHANGES[what]
    runs.edit_generation(copy, 3, change)
    found = diff_runs(run, copy)
    assert (found.generation, len(found.reasons)) == (3, 1)
    assert found.reasons[0] == reason or found.reasons[0].startswith(BEGINS[what])


def test_causes_come_before_effects(run, copy):
    def change(data):
        data["coefficients"][0] = 0.5
        data["rewards"][0] = 0.5
        data["prompts"] = [1]
        data["state"]["members"] = 1

    runs.edit_generation(copy, 2, change)
    kinds = [reason.split()[0].strip(":") for reason in diff_runs(run, copy).reasons]
    assert kinds == ["prompts", "rewards", "coefficients", "state"]


def test_many_differing_members_are_counted_and_a_few_shown(tmp_path):
    one, two = trained(tmp_path / "one", population=12), tmp_path / "two"
    shutil.copytree(one, two)
    runs.edit_generation(two, 1, lambda data: data.update(rewards=[9.0] * 12))
    (reason,) = diff_runs(one, two).reasons
    assert reason.startswith("rewards (12 of 12 differ): 0+: ")
    assert reason.endswith("; and 8 more")
    assert reason.count(" and 9.0") == 4


def test_equal_records_with_other_weights_part_at_the_fingerprint(command, run, copy):
    def change(data):
        if data.get("after") == 4:
            data["fingerprint"] = "ab" * 16

    runs.edit_ledger(copy, change)
    code, output, _ = command("diff", run, copy)
    assert code == 1
    first, second = output.splitlines()
    assert first == "the runs part at generation 3, after 3 equal ones:"
    assert second.startswith("  fingerprints after 4 generations: ")
    assert second.endswith(
        f"and {'ab' * 16}, though all records so far are equal: other base weights, or other arithmetic"
    )


def test_no_model_is_loaded(run, copy):
    check = "import atexit, sys; atexit.register(lambda: print(sorted({'torch', 'numba'} & sys.modules.keys())))"
    done = runs.cli("diff", run, copy, code=check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_corrupted_ledger_is_named(failure, run, copy):
    path = directory.RunPaths(copy).ledger
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    assert failure("diff", run, copy).startswith(f"{path} line 1 is corrupted")
    assert failure("diff", run, copy.parent / "nothing").startswith(f"{copy.parent / 'nothing'} is not a run directory")
