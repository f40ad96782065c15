"""A run whose rewards fall goes back by its ledger, and everything made from the ledger goes with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import runs
from seedtune import apply_pack, export_run, pack_run, verify_run
from seedtune.errors import LedgerError
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.lineage import Lineage
from seedtune.run.records import Record
from seedtune.strategies.step_size import RECOVERY
from seedtune.tasks.builtin.toy import closeness
from seedtune.trainer import ESTrainer

ROWS = [{"prompt": f"number {index}", "answer": 0.1 * index} for index in range(8)]


class Cliff:
    """A reward that falls off a cliff for some generations: seen on watched prompts, which are answered apart."""

    def __init__(self, first: int, last: int) -> None:
        self.generation, self.first, self.last = 0, first, last

    def __call__(self, completions: list[str], answer: list[float], **_: object) -> list[float]:
        fallen = 5.0 if self.first <= self.generation <= self.last else 0.0
        self.generation += len(completions) > len(ROWS)  # members, after the watched prompts
        close = closeness(completions, answer)
        return [-9.0 if value is None else value - fallen for value in close]


def trainer(root: Path, reward, **settings) -> ESTrainer:
    more = {"rollback_on_fall": "yes", "generations": 14, "eval_steps": 0, "save_steps": 3, "fingerprint_steps": 1,
            "reward_batch": "all", "population": 54, "prompts_per_generation": 8}  # fmt: skip
    config = runs.toy(root, **{**more, **settings})
    return ESTrainer(args=config, reward_funcs=reward, train_dataset=ROWS)


WAYS = [{}, {"alpha": None, "rollback_on_fall": "auto"}, {"weights_dtype": "model", "dtype": "bfloat16"}]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def root(request, tmp_path_factory) -> Path:
    """The run of each kind, which no test changes."""
    root = tmp_path_factory.mktemp("whole") / "run"
    trainer(root, Cliff(8, 10), **request.param).train()
    return root


def contents(root: Path) -> ledger.Contents:
    return ledger.read(directory.RunPaths(root).ledger)


def back_of(root: Path) -> Record:
    """The only generation that went back."""
    (back,) = [record for record in contents(root).records if record.rollback_to is not None]
    return back


def test_a_fall_is_gone_back_on_and_told(root):
    back, at = back_of(root), back_of(root).plan.generation
    assert at == 9  # the watched prompts are answered every third generation
    assert back.alpha == 0.0
    assert back.rollback_to in (0, 3, 6)
    prints = contents(root).fingerprints
    assert prints[at + 1] == prints.get(back.rollback_to, contents(root).header.base_fingerprint) != prints[at]
    (alarms,) = [row["alarms"] for row in runs.rows(directory.RunPaths(root).metrics) if row["generation"] == at + 1]
    assert alarms == [
        f"the rewards of watched prompts fell: back to the model after generation {back.rollback_to}, "
        "and on with half the step. If it happens again, lower sigma."
    ]


def test_the_ledger_has_the_rewards_of_watched_prompts_where_it_was_time(root):
    watched = {record.plan.generation: record.watched for record in contents(root).records if record.watched}
    assert list(watched) == [0, 3, 6, 9, 12]
    assert all(len(rewards) == len(ROWS) for rewards in watched.values())
    assert max(watched[9]) < min(watched[6])
    assert list(contents(root).ends) == [14]


@pytest.mark.parametrize("root", WAYS[:1], ids=str, indirect=True)
def test_steps_are_shorter_afterwards(root):
    alphas, at = [record.alpha for record in contents(root).records], back_of(root).plan.generation
    assert alphas[:at] == [0.2] * at
    assert alphas[at + 1 :] == pytest.approx([0.1 * RECOVERY**later for later in range(13 - at)])


@pytest.mark.parametrize("settings", [{"rollback_on_fall": "no"}, {"rollback_on_fall": "auto"}], ids=str)
def test_a_run_with_a_given_alpha_or_told_not_to_goes_on(tmp_path, settings):
    trainer(tmp_path / "run", Cliff(8, 10), **settings).train()
    assert all(record.rollback_to is None and not record.watched for record in contents(tmp_path / "run").records)
    assert contents(tmp_path / "run").ends == {}


def test_it_verifies_on_every_branch(root):
    verified = verify_run(root, snapshots=True)
    assert verified.matched == tuple(range(1, 15))


def test_a_wrong_fingerprint_on_the_branch_that_was_left_is_found(root, tmp_path):
    root = shutil.copytree(root, tmp_path / "edited")
    at = back_of(root).plan.generation

    def change(data):
        if data.get("after") == at:
            data["fingerprint"] = "0" * 32

    runs.edit_ledger(root, change)
    with pytest.raises(LedgerError, match=f"after {at} generations"):
        verify_run(root)


def test_a_pack_and_every_export_have_the_bits_of_the_run(root, tmp_path):
    pack_run(root, tmp_path / "file.pack")
    apply_pack(tmp_path / "file.pack", tmp_path / "applied")
    export_run(root, tmp_path / "exported")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("applied", "exported"))
    assert one == two
    export_run(root, tmp_path / "left", generation=back_of(root).plan.generation)
    assert (tmp_path / "left" / "model.safetensors").read_bytes() != one


def test_resuming_after_the_way_back_gives_the_same_run(root, tmp_path):
    config = recorded_config.run_config(root)
    again = ESTrainer(
        args=config.replace(output_dir=str(tmp_path / "cut"), generations=11),
        reward_funcs=Cliff(8, 10),
        train_dataset=ROWS,
    )
    again.train()
    rest = ESTrainer(
        args=config.replace(output_dir=str(tmp_path / "cut")), reward_funcs=Cliff(-1, -1), train_dataset=ROWS
    )
    rest.train(resume_from_checkpoint=True)
    assert runs.without_ends(tmp_path / "cut") == runs.without_ends(root)
    assert list(contents(tmp_path / "cut").ends) == [11, 14]


def test_the_lineage_leaves_out_what_was_gone_back_on(root):
    lineage = Lineage(contents(root).records)
    at, back = back_of(root).plan.generation, back_of(root).rollback_to
    assert lineage.path(14) == [*range(back), *range(at + 1, 14)]
    assert lineage.path(at) == list(range(at))
    assert lineage.path(at + 1) == lineage.path(back)
    assert lineage.ends(14) == [at, 14]
    assert [update.generation for update in lineage.updates(14)] == list(range(14))
    assert all(not update.terms for update in lineage.updates(14)[back : at + 1])
    assert lineage.reaches(at + 1, 14)
    assert not lineage.reaches(at, 14)
