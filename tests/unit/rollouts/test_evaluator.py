"""The evaluator: what members answer, scored into matrices, one number per member and prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

import hostile
from scores import length, number
from seedtune import engines, tasks
from seedtune.config.config import Config
from seedtune.rewards.base import Reward
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.types import UNPERTURBED, Job, Member, Plan, Rollout

NAN = math.nan
MEMBERS = (Member(0, 0, 1), Member(0, 0, -1))
EXAMPLES = examples([{"prompt": f"prompt {index}"} for index in range(2)], "train")


class TableEngine:
    """Answers from a table (member, prompt, sample) → text, the last job first: arrival is in any order."""

    def __init__(self, table: dict[Member, list[list[str]]]) -> None:
        self.table, self.jobs = table, []

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        self.jobs = list(jobs)
        for job in reversed(self.jobs):
            for member in reversed(job.members):
                for prompt in range(len(job.prompts)):
                    for sample in reversed(range(job.sampling.samples)):
                        text = self.table[member][prompt][sample]
                        yield Rollout(job.id, member, prompt, sample, text, (1,), 3, "stop")


def task(*rewards: Reward) -> Task:
    return Task("numbers", EXAMPLES, EXAMPLES, rewards or (Reward("number", number),))


def evaluated(table: list[list[list[str]]], *rewards: Reward, members=MEMBERS, **settings) -> Outcome:
    engine = TableEngine(dict(zip(members, table, strict=True)))
    evaluator = Evaluator(engine, task(*rewards), Config(**settings))
    return evaluator.evaluate(members, EXAMPLES, plan=Plan(0, 0.1, members))


def test_scores_are_placed_by_member_and_prompt_in_whatever_order_they_arrive():
    outcome = evaluated([[["1"], ["2"]], [["3"], [""]]], members_per_job=1)
    np.testing.assert_array_equal(outcome.scores, [[1.0, 2.0], [3.0, NAN]])


def test_every_reward_has_scores_of_its_own_without_its_weight():
    rewards = (Reward("number", number, 2.0), Reward("length", length, -1.0))
    outcome = evaluated([[["10"], ["2"]], [["3"], [""]]], *rewards)
    np.testing.assert_array_equal(outcome.by_reward, [[[10.0, 2.0], [3.0, NAN]], [[2.0, 1.0], [NAN, 0.0]]])
    np.testing.assert_array_equal(outcome.scores, [[18.0, 3.0], [6.0, 0.0]])


def test_scores_by_reward_of_one_reward_are_the_scores():
    outcome = evaluated([[["10"], ["2"]], [["3"], [""]]])
    np.testing.assert_array_equal(outcome.by_reward, outcome.scores[None])


@pytest.mark.parametrize(("reward", "asked"), [(hostile.progress, True), (length, False)])
def test_rewards_get_token_ids_which_engines_are_asked_for_if_necessary(reward, asked):
    engine = TableEngine(dict(zip(MEMBERS, [[["a"], ["b"]], [["a"], ["d"]]], strict=True)))
    evaluator = Evaluator(engine, task(Reward("r", reward)), Config(generations=4, reward_workers=0))
    outcome = evaluator.evaluate(MEMBERS, EXAMPLES, plan=Plan(2, 0.1, MEMBERS))
    assert {job.tokens for job in engine.jobs} == {asked}
    np.testing.assert_array_equal(outcome.scores, np.full((2, 2), 1.5 if asked else 1.0))
    assert outcome.metrics == ({"rewards/r/tokens": 1.0} if asked else {})
    assert outcome.logged.get((EXAMPLES[1].id, "d"), {}).get("shouted") == ("D" if asked else None)


SAMPLES = [
    [["1", "4", "1 "], ["", "5", "2"]],
    [["0", "", ""], ["3", "3", "7"]],
]
SAMPLING = {"samples_per_prompt": 3, "temperature": 0.7}


@pytest.mark.parametrize(
    ("objective", "scores"),
    [
        ("mean", [[2.0, 3.5], [0.0, 13 / 3]]),
        ("pass_at_k", [[4.0, 5.0], [0.0, 7.0]]),
        ("majority_at_k", [[1.0, 5.0], [0.0, 3.0]]),
    ],
)
def test_a_score_is_what_the_objective_makes_of_the_samples(objective, scores):
    outcome = evaluated(SAMPLES, **SAMPLING, objective=objective)
    np.testing.assert_array_equal(outcome.scores, scores)
    assert len(outcome.rollouts) == len(outcome.rewards) == 12


def test_a_majority_is_one_of_answers_where_the_task_says_what_these_are():
    said = Task("sums", EXAMPLES, EXAMPLES, (Reward("length", length),), answer=lambda text: text.rpartition("=")[2])
    table = {MEMBERS[0]: [["1+1=2", "5=5", "x = 2"], ["7=7", "x=", "y="]]}
    config = Config(**SAMPLING, objective="majority_at_k")
    outcome = Evaluator(TableEngine(table), said, config).evaluate(
        MEMBERS[:1], EXAMPLES, plan=Plan(0, 0.1, MEMBERS[:1])
    )
    np.testing.assert_array_equal(outcome.scores, [[5.0, 3.0]])


def test_scores_by_reward_are_of_the_samples_that_the_total_chose():
    rewards = (Reward("number", number), Reward("length", length, 10.0))
    outcome = evaluated([[["5", "12"], ["1", "100"]], [["3", "2"], ["30", "99"]]], *rewards,
                        samples_per_prompt=2, temperature=1.0, objective="pass_at_k")  # fmt: skip
    np.testing.assert_array_equal(outcome.by_reward[0], [[12.0, 100.0], [2.0, 99.0]])
    np.testing.assert_array_equal(outcome.by_reward[1], [[2.0, 3.0], [1.0, 2.0]])
    np.testing.assert_array_equal(outcome.scores, outcome.by_reward[0] + 10 * outcome.by_reward[1])


@pytest.mark.parametrize("objective", ["pass_at_k", "majority_at_k"])
def test_the_current_model_alone_has_the_mean_of_its_samples_whatever_the_objective(objective):
    config = Config(**SAMPLING, objective=objective)
    outcome = Evaluator(TableEngine({UNPERTURBED: SAMPLES[0]}), task(), config).unperturbed(EXAMPLES, generation=3)
    np.testing.assert_array_equal(outcome.scores, [[2.0, 3.5]])


def test_the_unperturbed_model_among_members_is_scored_as_they_are():
    outcome = evaluated(SAMPLES, members=(MEMBERS[0], UNPERTURBED), **SAMPLING, objective="pass_at_k")
    np.testing.assert_array_equal(outcome.row(UNPERTURBED), [0.0, 7.0])


def test_every_job_asks_for_as_many_samples_as_configured():
    engine = TableEngine(dict(zip(MEMBERS, SAMPLES, strict=True)))
    config = Config(**SAMPLING, members_per_job=1)
    Evaluator(engine, task(), config).evaluate(MEMBERS, EXAMPLES, plan=Plan(7, 0.1, MEMBERS))
    assert [job.sampling.samples for job in engine.jobs] == [3, 3]
    assert {job.sampling.generation for job in engine.jobs} == {7}


@pytest.mark.parametrize("objective", ["mean", "pass_at_k", "majority_at_k"])
def test_samples_of_the_toy_engine_are_equal_so_that_every_objective_is_its_one_reward(objective):
    settings = {"engine": "toy", "task": "toy", "model": "toy"}
    once, several = Config(**settings), Config(**settings, samples_per_prompt=4, temperature=1.0, objective=objective)
    toy = tasks.create("toy")
    outcomes = []
    for config in (once, several):
        engine = engines.create(config)
        engine.load()
        outcomes.append(Evaluator(engine, toy, config).evaluate(MEMBERS, toy.train, plan=Plan(0, 0.1, MEMBERS)))
    assert len(outcomes[1].rollouts) == 4 * len(outcomes[0].rollouts) == 4 * 2 * len(toy.train)
    np.testing.assert_array_equal(outcomes[1].scores, outcomes[0].scores)
    assert np.unique(outcomes[0].scores).size > len(toy.train)


def test_completions_that_every_reward_declines_are_told_once_and_have_no_score(caplog):
    declining = Reward("some", lambda completions, **_: [None if text == "1" else 1.0 for text in completions])
    outcome = evaluated([[["1"], ["2"]], [["1"], ["1"]]], declining)
    assert np.isnan(outcome.scores).tolist() == [[True, False], [True, True]]
    (record,) = [each for each in caplog.records if "every reward function returned None" in each.message]
    assert "for a completion of prompt 0: it is not scored, which is not a reward of 0 (shown once" in record.message
