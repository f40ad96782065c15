"""The watch on fixed prompts: what is a fall, where a run goes back to, and which generation is handed out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedtune.strategies.watch import (
    BETTER,
    COST,
    FALLEN,
    FEWEST,
    WATCHED,
    MeanChange,
    Watch,
    best,
    change,
    chosen,
    interval,
)

LOOK = Watch()
START = [0.5, 0.25, 1.0, 0.0, 0.75, 0.5, 0.25, 1.0] * 2


def moved(by: float, scatter: float = 0.0, seed: int = 0) -> list[float]:
    """The rewards of START, changed by ``by`` on average with exactly this standard error of the mean."""
    drawn = np.random.default_rng(seed).normal(size=len(START))
    drawn -= drawn.mean()
    drawn *= scatter * math.sqrt(len(START)) / drawn.std(ddof=1) if scatter else 0.0
    return [float(reward + by + each) for reward, each in zip(START, drawn, strict=True)]


def begun(rewards=START, generation: int = 3) -> dict:
    back, state = LOOK.update({}, generation, rewards)
    assert back is None
    return dict(state)


def test_rewards_are_compared_prompt_by_prompt():
    before, now = [1.0, 5.0, None, 2.0, 9.0] * 3, [2.0, 5.0, 3.0, None, 12.0] * 3
    apart = [1.0, 0.0, 3.0] * 3
    assert change(before, now) == MeanChange(pytest.approx(4 / 3), pytest.approx(np.std(apart, ddof=1) / 3), 9)


@pytest.mark.parametrize("count", range(FEWEST))
def test_few_prompts_say_nothing_for_sure_and_are_no_fall(count):
    assert change([1.0] * count, [0.0] * count) == MeanChange(-1.0 if count else 0.0, 0.0, count)
    assert LOOK.update(begun([1.0] * FEWEST), 6, [0.0] * count + [None] * (FEWEST - count))[0] is None
    assert LOOK.update(begun([1.0] * FEWEST), 6, [0.0] * FEWEST)[0] == 3


@pytest.mark.parametrize("rollouts", [4, 12, 256, 640, 641, 10_000])
def test_watching_costs_no_more_than_its_share(rollouts):
    every = interval(rollouts)
    assert COST * rollouts * every >= WATCHED or every == 1
    assert every == 1 or COST * rollouts * (every - 1) < WATCHED


def test_the_first_look_is_the_best_so_far():
    assert begun() == {"best": START, "best_at": 3}


def test_a_better_look_is_the_best_from_then_on():
    back, state = LOOK.update(begun(), 6, better := moved(0.01))
    assert (back, state) == (None, {"best": better, "best_at": 6})


@pytest.mark.parametrize("errors", [0.1, 1.0, 0.95 * FALLEN])
def test_a_fall_within_the_noise_is_none_and_the_best_stays(errors):
    assert LOOK.update(begun(), 6, moved(-errors * 0.1, 0.1)) == (None, begun())


def test_a_fall_beyond_the_noise_goes_back_to_the_best_generation():
    back, state = LOOK.update(begun(generation=3), 9, moved(-1.05 * FALLEN * 0.1, 0.1))
    assert (back, state) == (3, begun(generation=3))
    assert LOOK.rolled_back(state) == state


def test_a_fall_by_the_same_on_every_prompt_is_one_however_small():
    assert LOOK.update(begun(), 6, moved(-0.25))[0] == 3


def test_rewards_that_stay_as_they_are_are_no_fall():
    assert LOOK.update(begun(), 6, START) == (None, begun())
    assert LOOK.update(begun([0.0] * 16), 6, [0.0] * 16) == (None, begun([0.0] * 16))


def test_a_generation_without_a_look_changes_nothing():
    assert LOOK.update({}, 2, ()) == (None, {})
    assert LOOK.update(begun(), 4, ()) == (None, begun())


def test_other_prompts_than_before_are_watched_from_then_on():
    assert LOOK.update(begun(), 6, START[:9]) == (None, {"best": START[:9], "best_at": 6})


def test_prompts_that_could_not_be_scored_are_left_out():
    half = [reward if place % 2 else None for place, reward in enumerate(moved(-0.5))]
    assert LOOK.update(begun(), 6, half)[0] == 3
    assert LOOK.update(begun(half), 6, START)[1]["best"] == START


@pytest.mark.parametrize("engine", [False, True])
def test_no_reward_at_all_is_a_fall_only_of_log_probabilities(engine):
    look, nothing = Watch(scored_by_engine=engine), [None] * 16
    assert look.update(begun(), 6, nothing) == (3 if engine else None, begun())
    assert look.update({}, 0, nothing) == (None, {})


@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_a_model_that_stays_as_good_is_seldom_taken_back(spread):
    """Ten looks at rewards that only scatter; the best of several was lucky, too."""
    backs = 0
    for seed in range(200):
        draw, state = np.random.default_rng(seed), {}
        for look in range(10):
            rewards = (0.5 + spread * draw.normal(size=WATCHED)).tolist()
            back, state = LOOK.update(state, look, rewards)
            backs += back is not None
    assert backs <= 0.02 * 200 * 10


# ------------------------------------------------------------------------------------------- what is handed out


def test_the_best_generation_on_the_same_prompts_is_handed_out():
    rewards = {0: moved(-0.1), 3: moved(0.2), 9: START}
    assert best(rewards) == chosen(rewards) == 3
    assert best({3: START, 9: moved(0.01)}) == chosen({3: START, 9: moved(0.01)}) == 9


def test_of_equal_generations_the_latest_is_the_best():
    assert best({0: START, 3: moved(-0.1), 9: START}) == 9
    assert best({12: START}) == chosen({12: START}) == 12


def test_generations_are_compared_on_prompts_that_are_scored_in_both():
    some = [None if place < 4 else reward for place, reward in enumerate(moved(-0.1))]
    assert best({3: some, 9: START}) == 9
    assert best({3: [None] * 16, 9: START}) == 9


@pytest.mark.parametrize(("errors", "model"), [(-1.0, 0), (0.0, 0), (0.95, 0), (1.05, 9), (5.0, 9)])
def test_the_base_model_is_handed_out_unless_another_is_clearly_better(errors, model):
    assert chosen({0: START, 9: moved(errors * BETTER * 0.1, 0.1)}) == model
    assert chosen({0: START, 5: moved(-0.3), 9: moved(errors * BETTER * 0.1, 0.1)}) == model


def test_one_prompt_that_is_better_is_enough_and_rewards_that_stay_are_not():
    assert chosen({0: [0.5], 4: [0.6]}) == 4
    assert chosen({0: [0.5], 4: [0.5]}) == 0


def test_a_base_model_without_a_score_is_no_reason_against_the_best():
    assert chosen({0: [None] * 16, 4: START, 9: moved(0.1)}) == 9
    assert chosen({4: START, 9: moved(0.1)}) == 9


@pytest.mark.parametrize("fall", [0.0, 0.05])
def test_a_model_no_better_is_seldom_handed_out_and_one_that_is_worse_hardly_ever(fall):
    """64 rewards of 0 and 1 each; a fall of 0.05 is less than one standard error of their mean difference."""
    taken = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        before, now = ((draw.random(WATCHED) < share).astype(float).tolist() for share in (0.3, 0.3 - fall))
        taken += chosen({0: before, 9: now}) == 9
    assert taken <= (0.2 if fall == 0.0 else 0.08) * 400
