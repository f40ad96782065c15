"""The scorer: the same values whatever the order and the workers, and rules for what fails."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

import hostile
from reward_calls import score
from seedtune.config.config import Config
from seedtune.errors import RewardError
from seedtune.rewards.base import Reward, total
from seedtune.rewards.execution import process
from seedtune.rewards.execution.call import Log, attempt
from seedtune.rewards.scorer import STUCK, Round, Scorer
from seedtune.tasks.builtin.conciseness import length_error
from seedtune.tasks.data.rows import examples
from waiting import BOUND, wait_until

EXAMPLES = examples([{"prompt": f"word {index}", "answer": "x" * index} for index in range(4)], "train")
PROMPTS = [prompt for _ in range(6) for prompt in range(4)]
"""Six members, four prompts."""
TEXTS = [f"{place * 7 % 113} 1" for place in range(24)]


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.2)


def scored(functions: Sequence[Callable] | Callable | Scorer, order: Sequence[int] = range(24), **settings) -> Round:
    """The finished scoring of all completions that ``order`` names."""
    scorer = functions if isinstance(functions, Scorer) else made(functions, **settings)
    try:
        with scorer.round(EXAMPLES, PROMPTS, after=0) as scoring:
            for place in order:
                scoring.add(place, TEXTS[place])
            scoring.finish()
            return scoring
    finally:
        if scorer is not functions:
            scorer.close()


def made(functions: Sequence[Callable] | Callable, **settings) -> Scorer:
    listed = [functions] if callable(functions) else list(functions)
    rewards = [Reward(f"r{index}", function) for index, function in enumerate(listed)]
    return Scorer(rewards, Config(**{"reward_workers": 2, **settings}))


def workers(scorer: Scorer) -> int:
    return sum(len(pool.workers) for pool in scorer._pools.values())


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("order", ["as they are", "reversed", "shuffled"])
def test_values_do_not_depend_on_workers_or_arrival(count, order):
    functions = [hostile.length, lambda prompts, answer: [len(a + p) for a, p in zip(answer, prompts, strict=True)]]
    expected = score([Reward("r0", functions[0]), Reward("r1", functions[1])], [EXAMPLES[i] for i in PROMPTS], TEXTS)
    places = {
        "as they are": range(24),
        "reversed": range(23, -1, -1),
        "shuffled": np.random.default_rng(3).permutation(24),
    }
    found = scored(functions, [int(i) for i in places[order]], reward_workers=count)
    assert found.values == expected
    assert found.failed() == {"r0": 0, "r1": 0}


@pytest.mark.parametrize(("batch", "sizes"), [("sample", 1), ("prompt", 6), ("all", 24)])
def test_a_call_holds_what_the_configuration_says(batch, sizes):
    order = [int(i) for i in np.random.default_rng(0).permutation(24)]
    assert scored(hostile.size, order, reward_batch=batch).values["r0"] == [sizes] * 24
    calls = []
    scored(lambda completions: calls.append(tuple(completions)) or [0] * len(completions), order, reward_batch=batch)
    parts = {"sample": [[i] for i in range(24)], "prompt": [range(p, 24, 4) for p in range(4)], "all": [range(24)]}[
        batch
    ]
    assert set(calls) == {tuple(TEXTS[i] for i in part) for part in parts}


def test_a_function_in_this_process_by_its_own_wish_gets_neighbours_together():
    scorer = Scorer([Reward("r", hostile.size, inline=True)], Config())
    assert scored(scorer).values["r"] == [24] * 24


def test_a_column_that_only_some_examples_have_is_none_for_the_others():
    data = examples([{"prompt": "a", "level": 2}, {"prompt": "b"}], "train")
    seen = []
    scorer = made(lambda completions, level: seen.append(level) or [0.0])
    with scorer.round(data, [0, 1], after=0) as scoring:
        scoring.add(0, "x")
        scoring.add(1, "y")
        scoring.finish()
    assert sorted(seen, key=str) == [[2], [None]]


def test_completions_that_every_reward_declines_are_known_and_failures_are_not_among_them():
    def odd(completions, prompts, **_):
        return [None if prompt[-1] in "13" else 1.0 for prompt in prompts]

    def none(completions, prompts, **_):
        if prompts[0][-1] == "3":
            raise KeyError("answer")
        return [None] * len(completions)

    found = scored([odd, none], range(20), reward_workers=0)
    assert found.declined() == [place for place in range(20) if PROMPTS[place] == 1]
    assert found.failed() == {"r0": 0, "r1": 5}


def test_completions_that_never_come_cost_no_others():
    values = scored(hostile.length, range(20), reward_batch="prompt").values["r0"]
    assert values[:20] == [len(text) for text in TEXTS[:20]]
    assert all(math.isnan(value) for value in values[20:])


def test_scoring_goes_on_while_completions_are_still_missing():
    called = threading.Event()

    def reward(completions):
        called.set()
        return [1.0]

    with made(reward).round(EXAMPLES, PROMPTS, after=0) as scoring:
        scoring.add(5, "first")
        assert called.wait(BOUND)
        for place in range(24):
            scoring.add(place, TEXTS[place])
        assert scoring.finish()["r0"] == [1.0] * 24


def test_data_that_cannot_be_sent_keeps_a_function_in_this_process_and_says_so(caplog):
    data = examples([{"prompt": f"p{index}", "answer": {1, 2}} for index in range(4)], "train")
    scorer = Scorer([Reward("r", sets)], Config(reward_workers=1))
    with scorer.round(data, PROMPTS, after=0) as scoring:
        for place in range(24):
            scoring.add(place, "")
        assert scoring.finish()["r"] == [1.0] * 24
    (record,) = caplog.records
    assert "its data hold a set" in record.getMessage()


def sets(completions, answer):
    return [float(all(value == {1, 2} for value in answer))] * len(completions)


def test_a_module_that_a_worker_cannot_import_keeps_its_function_in_this_process(caplog, monkeypatch):
    monkeypatch.setattr(hostile.length, "__module__", "only_here")
    monkeypatch.setitem(__import__("sys").modules, "only_here", hostile)
    assert scored(hostile.length).values["r0"] == [len(text) for text in TEXTS]
    assert "there is no module 'only_here'" in caplog.text


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("function", [hostile.progress, hostile.progress_of_all])
def test_functions_get_trls_keywords_and_what_they_log_is_kept(count, function):
    scorer = made(function, reward_workers=count, generations=8)
    with scorer.round(EXAMPLES, PROMPTS, after=2) as scoring:
        for place in range(24):
            scoring.add(place, TEXTS[place], ids=range(PROMPTS[place]))
        assert scoring.finish()["r0"] == [2 / 8 + prompt for prompt in PROMPTS]
    columns, metrics = scorer.take_logged()
    assert metrics == {"rewards/r0/tokens": 1.5}
    assert columns[EXAMPLES[1].id, TEXTS[1]] == {"shouted": TEXTS[1], "kind": "<class 'int'>"}
    assert scorer.take_logged() == ({}, {})
    scorer.close()


@pytest.mark.parametrize(
    ("reward", "tokens", "values"),
    [
        (Reward("r", hostile.overlong), (2, 3, 4, 9), [0.0, -0.25, -0.5, -1.0]),
        (Reward("r", hostile.overlong, source="hostile.overlong"), (2, 3, 4, 9), [0.0, -0.25, -0.5, -1.0]),
        (Reward("r", hostile.cosine_scaled), (0, 1, 2, 2), [1.0, -0.5, 0.5, -0.5]),
    ],
    ids=["overlong", "in a worker", "cosine"],
)
def test_rewards_in_trls_way_of_calling_work_as_they_are(reward, tokens, values):
    data = examples([{"prompt": f"p{index}", "solution": "yes"} for index in range(4)], "train")
    scorer = Scorer([reward], Config(reward_workers=1))
    with scorer.round(data, range(4), after=0) as scoring:
        for place, (text, count) in enumerate(zip(("yes", "no", "yes", "no"), tokens, strict=True)):
            scoring.add(place, text, ids=[7] * count)
        assert scoring.finish()["r"] == pytest.approx(values)
    scorer.close()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda log: log.extra("x", [1]), "log_extra('x') got 1 values for 2 completions: log one each"),
        (lambda log: log.metric("m", np.ones(2)), "log_metric('m') got array([1., 1.]): log a number within ±1e+60"),
        (lambda log: log.metric("m", 1e308), "log_metric('m') got 1e+308: log a number within ±1e+60"),
        (lambda log: log.extra("e", itertools.count()), "log_extra('e') got 3 values for 2 completions: log one each"),
        (lambda log: log.metric("std", 1.0), "log_metric('std') would hide the reward's own std: choose another name"),
    ],
)
def test_what_cannot_be_logged_says_why(log, message):
    fault = attempt(lambda completions: log(Log(2)), {"completions": ["a", "b"]}, 2).faults[0]
    assert fault.message == f"raised ValueError: {message}"


def test_logged_values_are_numbers_of_python_or_text():
    log = Log(5)
    log.extra("e", [np.int64(2), np.float32(0.5), math.inf, True, [1]])
    assert list(map(repr, log.columns["e"])) == ["2", "0.5", "'inf'", "True", "'[1]'"]


def test_tokens_are_asked_for_and_sent_only_if_a_reward_takes_them():
    functions = [lambda completion_ids: [0.0], hostile.length, length_error, lambda completions: [0.0]]
    assert [made(function).reads_tokens for function in functions] == [True, True, False, False]
    assert not Scorer([Reward("r", hostile.length, inline=True)], Config()).reads_tokens
    keywords = []
    scorer = made(
        [lambda completions, **kw: keywords.append(kw) or [0.0], lambda completion_ids: [len(completion_ids[0])]]
    )
    with scorer.round(examples([{"prompt": "p"}], "train"), [0], after=0) as scoring:
        scoring.add(0, "a", ids=[5, 6])
        assert scoring.finish()["r1"] == [2]
    assert keywords[0]["completion_ids"] == [[5, 6]]
    scorer.close()


@pytest.mark.parametrize(("batch", "warned"), [("sample", True), ("prompt", False)])
def test_a_reward_that_compares_completions_but_gets_one_is_told_of(batch, warned, caplog):
    scorer = made([hostile.compares, hostile.length], reward_batch=batch, reward_workers=0)
    values = [scored(scorer).values["r0"] for _ in range(4)]
    assert not caplog.records  # as a sparse reward begins
    values += [scored(scorer).values["r0"] for _ in range(2)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    for message in messages:
        assert message.startswith("the reward function 'r0' returned 0 for all completions, evaluation after")
        assert "if it compares completions, set reward_batch=prompt" in message
    assert len(set(values[0])) == (1 if warned else 2)


# ------------------------------------------------------------------------- failures


def test_what_fails_costs_its_completions_and_is_counted(caplog):
    names = ["exits", "leaves", "raises", "text", "too_few", "infinite", "nan", "none"]
    scoring = scored([getattr(hostile, f"sometimes_{name}") for name in names])
    expected = hostile.digits(TEXTS)
    for place, prompt in enumerate(PROMPTS):
        for values in scoring.values.values():
            assert math.isnan(values[place]) if prompt == 0 else values[place] == expected[place]
    assert list(scoring.failed().values()) == [6] * 6 + [0, 0]


def test_a_completion_on_which_one_reward_fails_is_not_scored_by_the_others():
    """Otherwise a member that crashes a penalty is paid for it."""
    scoring = scored([hostile.sometimes_raises, hostile.sometimes_none, hostile.length], reward_workers=0)
    failed = np.array(PROMPTS) == 0
    np.testing.assert_array_equal(np.isnan(scoring.values["r2"]), failed)
    np.testing.assert_array_equal(np.isnan(total(scoring._scorer.rewards, scoring.values)), failed)
    assert scoring.failed() == {"r0": 6, "r1": 0, "r2": 0}
    judge = Reward("judge", lambda prompts: [None if p == "word 0" else 1.0 for p in prompts], inline=True)
    judged = scored(Scorer([judge, Reward("r1", hostile.length)], Config(reward_workers=0)))
    np.testing.assert_array_equal(np.isnan(judged.values["r1"]), failed)
    assert judged.failed() == {"judge": 0, "r1": 0}
    none = scored([hostile.sometimes_none, hostile.length], reward_workers=0)
    assert total(none._scorer.rewards, none.values)[0] == len(TEXTS[0])  # None: does not apply, the others count


def test_each_kind_is_shown_once_with_its_traceback(caplog):
    scorer = made(hostile.sometimes_raises, reward_workers=0)
    scored(scorer)
    scored(scorer)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the reward function 'r0' raised KeyError: 'answer'; that completion is not scored" in record.getMessage()
    assert 'raise KeyError("answer")' in record.getMessage()


def test_a_function_that_never_works_stops_long_before_the_end():
    def generate(scoring):
        for place in range(12):
            scoring.add(place, "x")
        while True:  # the engine is at work, and sends one twice
            time.sleep(0.01)
            scoring.add(0, "x")

    with made(hostile.raises).round(EXAMPLES, PROMPTS, after=0) as scoring:
        with pytest.raises(RewardError, match="'r0' raised KeyError: 'answer', like every other call so far"):
            generate(scoring)
        scoring._scorer.close()


def test_one_bad_prompt_does_not_stop_a_run_that_has_just_begun():
    order = sorted(range(24), key=lambda place: PROMPTS[place])
    assert scored(hostile.sometimes_raises, order, reward_workers=0).failed() == {"r0": 6}


def test_more_failures_than_allowed_stop_with_what_failed_how_often():
    with pytest.raises(RewardError) as caught:
        scored(hostile.sometimes_raises, max_reward_failure_rate=0.2)
    assert str(caught.value) == (
        "the reward function 'r0' failed on 5 of 24 completions, more than max_reward_failure_rate=0.2 allows; "
        "most often it raised KeyError: 'answer'. Fix it, or return None for completions it cannot score, "
        "or raise the limit."
    )


def test_a_given_source_that_cannot_be_loaded_stops_at_once():
    scorer = Scorer([Reward("r", hostile.length, source="hostile.gone")], Config(reward_workers=1))
    with pytest.raises(RewardError, match="'r' cannot be loaded in a worker process: raised ConfigError"):
        scored(scorer)


def test_a_hang_in_this_process_costs_its_completions_and_many_stop_the_run():
    release = threading.Event()

    def hangs(prompts, completions):
        if prompts == ["word 0"]:
            release.wait(BOUND)
        return [1.0]

    scorer = made(hangs, reward_timeout=0.5)
    assert scored(scorer).failed() == {"r0": 6}
    with pytest.raises(RewardError, match=f"hangs in {STUCK} threads of this process"):
        scored(scorer)
    release.set()


def test_an_exit_or_interrupt_in_a_thread_is_a_failure_of_its_call():
    def leaves(prompts, completions):
        if prompts == ["word 0"]:
            raise KeyboardInterrupt
        return [1.0]

    assert scored(leaves).failed() == {"r0": 6}


def test_failures_are_reported_once_an_evaluation():
    reported = []
    scorer = made([hostile.sometimes_raises, hostile.length], reward_workers=0)
    scorer.keep(reported.append, "")
    scored(scorer)
    (rows,) = reported
    assert [row["prompt_id"] for row in rows] == [0] * 6
    assert {row["completion"] for row in rows} == {TEXTS[place] for place in range(24) if PROMPTS[place] == 0}
    first = {key: rows[0][key] for key in ("after_generation", "reward", "kind", "error")}
    assert first == {"after_generation": 0, "reward": "r0", "kind": "exception", "error": "raised KeyError: 'answer'"}


# --------------------------------------------------------------------------- workers


def test_workers_are_kept_between_evaluations_and_start_again_after_closing():
    scorer = made(hostile.pid, reward_workers=1)
    first, second = (set(scored(scorer).values["r0"]) for _ in range(2))
    assert first == second
    scorer.close()
    assert workers(scorer) == 0
    assert set(scored(scorer).values["r0"]) != first
    scorer.close()


def test_an_interrupt_ends_all_workers():
    scorer, started = made(hostile.sleeps), []

    def interrupted():
        with scorer.round(EXAMPLES, PROMPTS, after=0) as scoring:
            scoring.add(0, "x")
            started.extend(_started(scorer))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [worker._process for worker in started] == [None]
    assert workers(scorer) == 0


def test_a_scorer_without_references_ends_its_workers():
    scorer = made(hostile.length)
    scored(scorer)
    (worker, *_) = _started(scorer)
    del scorer
    gc.collect()
    assert worker._process is None


def _started(scorer: Scorer) -> list:
    (pool,) = scorer._pools.values()
    wait_until(lambda: any(worker._process for worker in pool.workers))
    return list(pool.workers)
