"""What a generation is told as, and when it raises an alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedtune import strategies, types
from seedtune.config.config import Config
from seedtune.engines.base import EngineTimes
from seedtune.rewards.base import Reward
from seedtune.run import metrics
from seedtune.run.records import Record
from seedtune.types import UNPERTURBED, Member, Plan, Rollout

NAN = math.nan
PAIR = Plan(4, 0.1, (Member(4, 0, 1), Member(4, 0, -1)))


def rollout(tokens: int, finish="stop") -> Rollout:
    return Rollout(0, UNPERTURBED, 0, 0, "x", (1,) * tokens, 3, finish)


def answer(pair: int, prompt: int, text: str, sample: int = 0) -> Rollout:
    return Rollout(0, Member(0, pair, 1), prompt, sample, text, (1, 2), 3, "stop")


def said(*token_ids: int) -> Rollout:
    return Rollout(0, UNPERTURBED, 0, 0, "x", token_ids, 3, "length")


def test_means_and_spreads_are_over_what_is_a_number():
    assert metrics.mean([1.0, NAN, 3.0]) == 2.0
    assert metrics.spread([1.0, NAN, 3.0]) == 1.0
    assert metrics.mean([NAN]) is metrics.spread([]) is None


def test_member_metrics_leave_failed_members_out():
    made = metrics.member_metrics(np.array([1.0, NAN, 3.0]))
    assert made == {"reward": 2.0, "reward_std": 1.0, "reward_best": 3.0}


def test_member_metrics_of_nothing_scored_are_none():
    assert set(metrics.member_metrics(np.array([NAN, NAN])).values()) == {None}


def test_prompt_metrics_count_ties_and_gaps():
    scores = np.array([[1.0, 5.0, NAN, 2.0], [1.0, 6.0, NAN, NAN]])
    made = metrics.prompt_metrics(scores)
    assert made == {"frac_reward_zero_std": 0.75, "frac_reward_missing": 3 / 8}


def test_every_reward_function_has_its_mean_and_spread():
    made = metrics.function_metrics({"fn": [1.0, NAN, 3.0], "none": [NAN]}, {"fn": 1, "none": 1})
    assert made == {
        "rewards/fn/mean": 2.0, "rewards/fn/std": 1.0, "rewards/none/mean": None, "rewards/none/std": None,
        "rewards/fn/failed": 1, "rewards/none/failed": 1,
    }  # fmt: skip


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_rewards_share_of_the_step_is_what_it_adds_to_its_direction(aggregation):
    config = Config(multi_objective_aggregation=aggregation)
    rewards = [Reward("right", len, weight=1.0), Reward("brief", len, weight=0.5), Reward("flat", len)]
    scores = np.array([[[1.0], [0.0]], [[0.0], [1.0]], [[7.0], [7.0]]])  # (rewards, members, prompts)
    shares = metrics.step_share_metrics(config, rewards, scores, (1.0, -1.0))
    assert shares == {
        "rewards/right/step_share": pytest.approx(2 / 3),
        "rewards/brief/step_share": pytest.approx(-1 / 3),
        "rewards/flat/step_share": 0.0,
    }


def test_there_are_no_shares_of_the_step_without_a_direction_or_with_one_reward():
    two, scores = [Reward("a", len), Reward("b", len)], np.array([[[1.0], [0.0]], [[NAN], [NAN]]])
    assert metrics.step_share_metrics(Config(), two, scores, (0.0, 0.0)) == {}
    assert metrics.step_share_metrics(Config(), two[:1], scores[:1], (1.0, -1.0)) == {}
    assert metrics.step_share_metrics(Config(), two, scores, (1.0, -1.0))["rewards/b/step_share"] == 0.0


def test_completion_metrics_count_tokens_and_cut_off_answers():
    made = metrics.completion_metrics([rollout(2), rollout(6, "length"), rollout(4), rollout(4)])
    assert made == {
        "completions/mean_length": 4.0,
        "completions/min_length": 2,
        "completions/max_length": 6,
        "completions/clipped_ratio": 0.25,
        "completions/duplicate_ratio": 0.0,
        "completions/repeating_ratio": 0.0,
    }


@pytest.mark.parametrize(
    ("rollouts", "ratio"),
    [
        ([answer(0, 0, "a"), answer(1, 0, "a"), answer(2, 0, "b"), answer(3, 0, "c")], 0.5),
        ([answer(0, 0, "a"), answer(1, 1, "a")], 0.0),
        ([answer(0, 0, "a", sample=0), answer(0, 0, "a", sample=1)], 0.0),
        ([answer(0, 0, "a", sample=0), answer(0, 0, "a", sample=1), answer(1, 0, "a"), answer(1, 0, "b")], 0.75),
        ([answer(0, 0, "a"), answer(1, 0, "A")], 0.0),
    ],
    ids=["two-of-four", "other-prompt", "one-member", "member-and-samples", "case"],
)
def test_a_duplicate_is_another_members_text_for_the_same_prompt(rollouts, ratio):
    assert metrics.completion_metrics(rollouts)["completions/duplicate_ratio"] == ratio


def test_repeating_is_what_answers_calls_repeating():
    loop, plain = said(*(1, 2, 3, 4, 5) * 5), said(*range(100))
    made = metrics.completion_metrics([loop, plain])["completions/repeating_ratio"]
    assert made == (types.repeats(loop.token_ids) + types.repeats(plain.token_ids)) / 2 == 0.5


def test_named_times_and_other_add_up_to_the_step():
    times = EngineTimes(perturb=1.0, update=2.0, generated_tokens=30)
    made = metrics.time_metrics(times, {"rollouts": 6.0, "score": 0.5}, 10.0)
    assert made["time/rollouts"] == 5.0
    assert sum(value for name, value in made.items() if name.startswith("time/")) == made["step_time"] == 10.0
    assert made["tokens_per_second"] == 5.0


def test_no_time_at_all_is_no_division_by_zero():
    made = metrics.time_metrics(EngineTimes(), {"rollouts": 0.0, "score": 0.0}, 0.0)
    assert set(made.values()) == {0.0}


@pytest.mark.parametrize(
    ("rewards", "coefficients", "words"),
    [
        ((1.0, 2.0), (-1.0, 1.0), []),
        ((1.0, 1.0), (0.0, 0.0), ["Raise sigma or use more prompts"]),
        ((2.0, 2.0), (1.0, 1.0), ["Raise sigma or use more prompts"]),
        ((NAN, NAN), (0.0, 0.0), ["Check the reward function"]),
    ],
)
def test_a_record_without_a_step_is_an_alarm_that_says_what_to_change(rewards, coefficients, words):
    made = metrics.record_alarms(Record(PAIR, 0.2, rewards, coefficients, (0,), None, {}))
    assert len(made) == len(words)
    assert all(word in alarm for word, alarm in zip(words, made, strict=True))


@pytest.mark.parametrize(("agreement", "seen", "said"), [(0.0, 16, 1), (0.0, 15, 0), (0.0, 17, 0), (0.6, 16, 0)])
def test_a_run_whose_prompts_do_not_agree_says_once_that_its_steps_are_the_shortest(agreement, seen, said):
    state = {"step_size": {"seen": seen, "agreement": agreement, "cost": 1.0}}
    plan = strategies.create(Config(population=32, sigma=0.1)).ask({}, seen)
    made = metrics.record_alarms(Record(plan, 0.2, (1.0, 2.0) * 16, (-1.0, 1.0) * 16, (0,), None, {}, state))
    assert [alarm for alarm in made if "more prompts a generation" in alarm] == made
    assert len(made) == said


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.9, 0.9, 0.5), []),
        ((0.95, 0.0, 0.0), ["max_completion_length"]),
        ((0.0, 0.95, 0.0), ["Raise sigma, unless only few answers"]),
        ((0.0, 0.0, 0.55), ["lower sigma and alpha"]),
        ((0.95, 0.95, 0.0), ["max_completion_length", "Raise sigma"]),
    ],
)
def test_a_metric_beyond_its_limit_is_an_alarm_that_says_what_to_change(shares, words):
    names = ("clipped_ratio", "duplicate_ratio", "repeating_ratio")
    ratios = {f"completions/{name}": share for name, share in zip(names, shares, strict=True)}
    made = metrics.limit_alarms(ratios, {})
    assert len(made) == len(words)
    assert all(word in alarm for word, alarm in zip(words, made, strict=True))


def test_a_function_that_failed_is_an_alarm():
    (alarm,) = metrics.failure_alarms({"fn": 3, "fine": 0}, 8)
    assert alarm == "the reward function 'fn' failed on 3 of 8 completions: see failures.jsonl."


def test_restored_metrics_are_what_the_ledger_knows():
    made = metrics.restored(Record(PAIR, 0.2, (1.0, 3.0), (-1.0, 1.0), (0,), 5.0, {"prompt": 2, "generated": 3}))
    assert made == {
        "generation": 5,
        "reward": 2.0,
        "reward_std": 1.0,
        "reward_best": 3.0,
        "reward_unperturbed": 5.0,
        "sigma": 0.1,
        "alpha": 0.2,
        "num_tokens": 5,
        "alarms": [],
        "restored": True,
    }
