"""Asynchronous runs: results of earlier generations are taken, recorded as such, and replay and verify hold exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import runs
from seedtune import apply_pack, diff_runs, engines, export_run, pack_run, tasks, verify_run
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import EngineError, LedgerError, RunError
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.records import Record
from seedtune.trainer import ESTrainer
from seedtune.types import UNPERTURBED, Member
from straggling import Schedule, Straggling, config, some_are_late


@pytest.fixture
def schedule_workers(monkeypatch):
    """``schedule_workers(schedule)`` makes engine=ray the toy engine with these workers."""

    def with_schedule(schedule: Schedule) -> Schedule:
        monkeypatch.setitem(engines.ENGINES, "ray", lambda config, noise: Straggling(config, noise, schedule))
        return schedule

    with_schedule(Schedule(late=some_are_late))
    return with_schedule


@pytest.fixture
def late(schedule_workers, tmp_path) -> Path:
    """A finished run whose results are up to two generations old."""
    return trained(tmp_path / "late", 2)


def trained(root: Path, max_staleness: int, **settings) -> Path:
    ESTrainer(args=config(root, max_staleness, **settings)).train()
    return root


def records(root: Path) -> list[Record]:
    return ledger.read(directory.RunPaths(root).ledger).records


def ages(root: Path) -> list[list[int]]:
    """How many generations old the members of every generation are."""
    return [[record.plan.generation - member.generation for member in record.plan.members] for record in records(root)]


def last_fingerprint(root: Path) -> str:
    contents = ledger.read(directory.RunPaths(root).ledger)
    return contents.fingerprints[contents.generations]


# ------------------------------------------------------------------- replay and verify


SETTINGS = {
    "pairs": {},
    "single": {"antithetic": False, "population": 7},
    "not-unperturbed": {"evaluate_unperturbed": False},
    "unperturbed-among-members": {"members_per_job": 3},
    "ranks": {"shaping": "centered_rank"},
    "none": {"shaping": "none"},
    "decay": {"anchor_l2": 0.5},
    "samples": {"samples_per_prompt": 2, "temperature": 0.7, "objective": "pass_at_k"},
    "schedule": {"alpha_schedule": {"kind": "linear", "over": 5}},
    "weights_dtype-model": {"weights_dtype": "model", "dtype": "bfloat16"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_replay_gives_the_fingerprint_that_training_had_and_verify_passes(schedule_workers, tmp_path, settings):
    trainer = ESTrainer(args=config(tmp_path / "run", 2, **settings))
    trainer.train()
    found = verify_run(tmp_path / "run", snapshots=True)
    assert found.fingerprint == trainer.load().fingerprint()
    assert found.audit.exact == 8
    assert max(map(max, ages(tmp_path / "run"))) >= 1


def test_a_ledger_alone_is_enough(late, tmp_path):
    (tmp_path / "sent").mkdir()
    shutil.copy(directory.RunPaths(late).ledger, tmp_path / "sent")
    assert verify_run(tmp_path / "sent").fingerprint == last_fingerprint(late)


def test_the_ledger_says_that_it_is_of_such_a_run_and_other_engines_verify_it(late):
    header = ledger.read(directory.RunPaths(late).ledger).header
    assert (header.config["engine"], header.config["max_staleness"]) == ("toy", 2)
    assert verify_run(late, sets=["engine=toy"]).fingerprint == last_fingerprint(late)


def test_export_and_pack_give_the_weights_that_training_had(late, tmp_path):
    pack_run(late, tmp_path / "late.pack")
    apply_pack(tmp_path / "late.pack", tmp_path / "applied")
    export_run(late, tmp_path / "exported")
    applied, exported = (tmp_path / name / "model.safetensors" for name in ("applied", "exported"))
    assert applied.read_bytes() == exported.read_bytes()


def test_the_same_arrivals_are_the_same_run_and_others_are_found_by_diff(late, schedule_workers, tmp_path):
    schedule_workers(Schedule(late=some_are_late))
    assert diff_runs(late, trained(tmp_path / "again", 2)).equal
    schedule_workers(Schedule(workers=4, late=some_are_late))
    found = diff_runs(late, trained(tmp_path / "other", 2))
    assert found.generation is not None
    assert found.reasons[0].startswith("members")


# ---------------------------------------------------------------------------- lateness


def test_with_max_staleness_0_a_run_is_the_synchronous_one_bit_for_bit(schedule_workers, tmp_path):
    plain = runs.toy(tmp_path / "plain", generations=8, population=8, members_per_job=2)
    ESTrainer(args=plain).train()
    trained(tmp_path / "ray", 0)
    runs.assert_same_run(tmp_path / "ray", tmp_path / "plain")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_generation_ends_when_a_worker_would_have_nothing_to_do(schedule_workers, tmp_path, workers):
    """One worker has something to do until all is done; of two, one has not while the other is at the last job."""
    schedule_workers(Schedule(workers=workers))
    plain = runs.toy(tmp_path / "plain", generations=8, population=8, members_per_job=2, evaluate_unperturbed=False)
    ESTrainer(args=plain).train()
    trained(tmp_path / "late", 1, evaluate_unperturbed=False)
    made, expected = records(tmp_path / "late"), records(tmp_path / "plain")
    if workers == 1:
        assert [repr(record) for record in made] == [repr(record) for record in expected]
        assert last_fingerprint(tmp_path / "late") == last_fingerprint(tmp_path / "plain")
    else:
        assert made[0].rewards == expected[0].rewards[:6]
        assert [len(record.rewards) for record in made] == [6] + 7 * [8]


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_no_update_takes_a_result_that_is_older_than_max_staleness(schedule_workers, tmp_path, max_staleness):
    schedule_workers(Schedule(workers=4, late=lambda job: 30 if job % 10 == 3 else some_are_late(job)))
    root = trained(tmp_path / "run", max_staleness, generations=16)
    assert max(map(max, ages(root))) == max_staleness


def test_every_member_is_used_once_and_all_but_the_last_ones_are_used(schedule_workers, tmp_path):
    root = trained(tmp_path / "run", 2, generations=12)
    used = [member for record in records(root) for member in record.plan.members]
    assert len(set(used)) == len(used)
    assert {member.generation for member in used} == set(range(12))
    assert {(g, pair, sign) for g in range(10) for pair in range(4) for sign in (1, -1)} <= set(used)


def test_at_least_half_a_population_is_waited_for(schedule_workers, tmp_path):
    schedule_workers(Schedule(workers=40, late=some_are_late))
    root = trained(tmp_path / "run", 3)
    assert min(len(record.rewards) for record in records(root)) >= 4


def test_a_late_member_is_scored_on_the_prompts_of_its_own_generation(schedule_workers, tmp_path):
    schedule = schedule_workers(Schedule(late=some_are_late))
    root = trained(tmp_path / "run", 2)
    asked = {member: [p.id for p in job.prompts] for job in schedule.submitted for member in job.members if member.sign}
    for record in records(root):
        theirs = [prompts for member in record.plan.members for prompts in asked[member]]
        assert set(record.prompts) >= set(theirs)
    late = [record for record in records(root) if len({m.generation for m in record.plan.members}) > 1]
    assert late
    assert all(len(record.prompts) > 3 for record in late)


def test_a_member_is_perturbed_from_the_weights_of_when_its_job_was_handed_out(schedule_workers, tmp_path, monkeypatch):
    fingerprints: dict[int, str] = {}
    evaluate = ToyEngine.evaluate

    def noted(engine, jobs):
        jobs = list(jobs)
        fingerprints.update({job.id: engine.fingerprint() for job in jobs})
        return evaluate(engine, jobs)

    monkeypatch.setattr(ToyEngine, "evaluate", noted)
    schedule = schedule_workers(Schedule(workers=40, late=some_are_late))
    trained(tmp_path / "run", 2, eval_steps=0, fingerprint_steps=1)
    contents = ledger.read(directory.RunPaths(tmp_path / "run").ledger)
    for job in schedule.submitted[5:]:
        assert fingerprints[job.id] == contents.fingerprints[job.sampling.generation]


def test_jobs_that_no_worker_can_evaluate_leave_members_without_a_reward(schedule_workers, tmp_path):
    schedule_workers(Schedule(late=some_are_late, lost=lambda job: job % 5 == 1))
    root = trained(tmp_path / "run", 2)
    missing = [np.isnan(record.rewards) for record in records(root)]
    assert sum(map(sum, missing)) > 8
    for record, gone in zip(records(root), missing, strict=True):
        assert not np.array(record.coefficients)[gone].any()
    assert verify_run(root).audit.exact == 8


def test_a_generation_that_no_worker_can_evaluate_stops_the_run_and_says_so(schedule_workers, tmp_path):
    schedule_workers(Schedule(workers=1, lost=lambda job: job >= 10))
    with pytest.raises(EngineError, match="none of the 5 jobs of generation 2 could be evaluated"):
        trained(tmp_path / "run", 2)
    schedule_workers(Schedule())
    ESTrainer(args=recorded_config.run_config(tmp_path / "run")).train(resume_from_checkpoint=True)
    assert verify_run(tmp_path / "run").generations == 8


def test_it_climbs_about_as_a_synchronous_run(schedule_workers, tmp_path):
    """Measured over three seeds: 0.16, 0.17 and 0.21 (max_staleness 0), 0.17, 0.17 and 0.21 (max_staleness 2)."""
    many = {"generations": 30, "population": 16, "members_per_job": 4, "prompts_per_generation": 8, "eval_steps": 0}
    gains = {}
    for max_staleness in (0, 2):
        root = trained(tmp_path / str(max_staleness), max_staleness, **many, eval_prompts=0, toy={"size": 8})
        first, last = [
            row["eval_reward"] for row in runs.rows(directory.RunPaths(root).metrics) if "eval_reward" in row
        ]
        gains[max_staleness] = last - first
    assert gains[0] > 0.1
    assert gains[2] > 0.7 * gains[0]
    assert np.mean([age for old in ages(tmp_path / "2") for age in old]) > 0.2


# ------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("stop_at", [0, 7, 13, 22, 29])
def test_a_run_that_was_stopped_goes_on_without_the_open_jobs_and_verifies(schedule_workers, tmp_path, stop_at):
    schedule_workers(Schedule(late=some_are_late, stop_at=stop_at))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", 2)
    before = len(records(tmp_path / "run"))
    schedule_workers(Schedule(late=some_are_late))
    trainer = ESTrainer(args=recorded_config.run_config(tmp_path / "run"))
    trainer.train(resume_from_checkpoint=True)
    found = verify_run(tmp_path / "run", snapshots=True)
    assert (found.generations, found.fingerprint) == (8, trainer.load().fingerprint())
    assert set(ages(tmp_path / "run")[before]) == {0}


def test_another_lag_refuses_to_resume(late):
    other = recorded_config.run_config(late).replace(ray={"engine": "toy", "workers": 3, "max_staleness": 1})
    with pytest.raises(RunError, match="max_staleness: 2 → 1"):
        ESTrainer(args=other.replace(generations=9)).train(resume_from_checkpoint=True)


def test_other_workers_may_go_on(late, schedule_workers):
    other = recorded_config.run_config(late).replace(
        ray={"engine": "toy", "workers": 9, "max_staleness": 2}, generations=12
    )
    schedule_workers(Schedule(workers=9, late=some_are_late))
    ESTrainer(args=other).train(resume_from_checkpoint=True)
    assert verify_run(late).generations == 12


# -------------------------------------------------------------------- what verify finds


def replaced(root: Path, generation: int, label: str) -> None:
    """Another member in the first place of a generation's record, its reward and coefficient as they are."""
    runs.edit_generation(root, generation, lambda data: data["members"].__setitem__(0, label))


@pytest.mark.parametrize(
    ("generation", "label", "reason"),
    [
        (4, "3:0+", r"recorded is member 3:0\+, which generation 3 has already"),
        (4, "4:9+", r"recorded is member 9\+, which the strategy did not ask for"),
        (4, "9+", r"recorded is member 9\+, which the strategy did not ask for"),
        (4, "5:0+", r"recorded is member 5:0\+, which the strategy did not ask for"),
        (7, "4:2-", r"recorded is member 4:2-, which generation 4 has already"),
        (4, "1+", r"recorded is member 1\+, which"),
    ],
    ids=str,
)
def test_a_member_that_a_generation_cannot_have_is_named(late, generation, label, reason):
    replaced(late, generation, label)
    with pytest.raises(LedgerError, match=f"generation {generation} does not follow .*{reason}"):
        verify_run(late)


def test_a_member_that_is_too_old_is_named(schedule_workers, tmp_path):
    """The header is sealed again, too, to say that only results of the last generation were taken."""
    schedule_workers(Schedule(workers=4, late=lambda job: 30 if job % 10 == 3 else 0))
    root = trained(tmp_path / "run", 3)
    first = next(g for g, old in enumerate(ages(root)) if max(old) > 1)
    runs.edit_ledger(root, lambda data: data["config"].__setitem__("max_staleness", 1) if "config" in data else None)
    directory.RunPaths(root).config.unlink()
    with pytest.raises(LedgerError, match=rf"generation {first} does .*asked for: over ray.max_staleness=1 before"):
        verify_run(root)


def test_members_out_of_order_are_named(late):
    def swap(data):
        for name in ("members", "rewards", "coefficients"):
            data[name][0], data[name][1] = data[name][1], data[name][0]

    runs.edit_generation(late, 3, swap)
    with pytest.raises(LedgerError, match=r"generation 3 does not follow .*but the strategy asks for"):
        verify_run(late)


@pytest.mark.parametrize("what", ["rewards", "coefficients"])
def test_an_edited_number_is_named(late, what):
    def change(data):
        data[what][0] += 1e-6

    runs.edit_generation(late, 3, change)
    with pytest.raises(LedgerError, match="generation 3: the coefficient of member"):
        verify_run(late)


def test_another_sigma_is_named(late):
    runs.edit_generation(late, 3, lambda data: data.__setitem__("sigma", 0.06))
    with pytest.raises(LedgerError, match=r"recorded is sigma 0\.06"):
        verify_run(late)


def test_a_synchronous_run_may_not_leave_members_out(schedule_workers, tmp_path):
    root = trained(tmp_path / "run", 0)

    def cut(data):
        for name in ("members", "rewards", "coefficients"):
            data[name] = data[name][:6]

    runs.edit_generation(root, 3, cut)
    with pytest.raises(LedgerError, match="recorded are 6 members, but the strategy asks for 8"):
        verify_run(root)


# ------------------------------------------------------------------------ what is shown


def test_staleness_is_in_the_metrics_of_asynchronous_runs_only(late, schedule_workers, tmp_path):
    rows = [row for row in runs.rows(directory.RunPaths(late).metrics) if "reward" in row]
    for row, old in zip(rows, ages(late), strict=True):
        assert row["staleness/mean"] == pytest.approx(np.mean(old))
        assert row["staleness/max"] == max(old)
    asked, used = 0, 0
    for row, old in zip(rows, ages(late), strict=True):
        asked, used = asked + 8, used + len(old)
        assert row["staleness/open"] == asked - used
    assert all(row["frac_reward_missing"] == 0.0 for row in rows)
    plain = runs.rows(directory.RunPaths(trained(tmp_path / "plain", 0)).metrics)
    assert not any(key.startswith("staleness") for row in plain for key in row)


def test_the_line_of_a_generation_shows_the_mean_staleness(command, schedule_workers, tmp_path):
    for max_staleness in (2, 0):
        file = runs.write_config(
            config(tmp_path / str(max_staleness), max_staleness), tmp_path / f"{max_staleness}.json"
        )
        code, output, errors = command("train", file)
        assert code == 0, errors
        (line,) = [line for line in output.splitlines() if line.startswith("generation 4/8")]
        assert (", staleness 0.6" in line) == bool(max_staleness)
        assert ("staleness" in line) == bool(max_staleness)


def test_the_unperturbed_reward_is_there_when_it_came_in_time(late):
    rewards = [record.reward_unperturbed for record in records(late)]
    assert None in rewards
    assert any(reward is not None for reward in rewards)
    for record in records(late):
        assert (record.evidence.cost is not None) <= (record.reward_unperturbed is not None)


def unperturbed_sometimes_late(job: int) -> int:
    """Of three jobs a generation, the last with the unperturbed model in it: it is late in even ones, the first in odd
    ones."""
    return {2: 4, 3: 2}.get(job % 6, 0)


def test_an_unperturbed_model_that_comes_late_with_its_members_is_not_taken_for_the_current_one(
    schedule_workers, tmp_path
):
    schedule_workers(Schedule(late=unperturbed_sometimes_late))
    root = trained(tmp_path / "run", 2, members_per_job=3)
    for record in records(root):
        in_time = any(m.generation == record.plan.generation and m.pair == 3 for m in record.plan.members)
        assert (record.reward_unperturbed is not None) == in_time
    assert {record.reward_unperturbed is None for record in records(root)} == {True, False}


@pytest.mark.parametrize("size", [2, 3, 9])
def test_every_recorded_reward_is_the_mean_of_what_its_member_answered(schedule_workers, tmp_path, size):
    schedule = schedule_workers(Schedule(late=unperturbed_sometimes_late if size == 3 else some_are_late))
    root, right = trained(tmp_path / "run", 2, members_per_job=size), tasks.create("toy").train
    for job in schedule.submitted:
        scores: dict[Member, list[float]] = {}
        for rollout in schedule.answers.get(job.id, ()):
            answer = right[job.prompts[rollout.prompt].id].columns["answer"]
            scores.setdefault(rollout.member, []).append(-abs(float(rollout.text) - answer))
        for record in records(root):
            recorded = dict(zip(record.plan.members, record.rewards, strict=True))
            if record.plan.generation == job.sampling.generation and record.reward_unperturbed is not None:
                recorded[UNPERTURBED] = record.reward_unperturbed
            for member in scores.keys() & recorded.keys():
                assert recorded[member] == pytest.approx(np.mean(scores[member]), rel=1e-12)
