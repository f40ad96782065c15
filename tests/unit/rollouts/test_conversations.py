"""Conversations of a population: who is asked what in each turn, what is written down, and what may go wrong."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import hostile
from seedtune.config.config import Config
from seedtune.errors import ConfigError, RewardError
from seedtune.rewards.base import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.environments import environment_reward
from seedtune.types import Member, Plan
from talking import CHATS, MEMBERS, TEXTS, Calling, Counting, Mute, Scripted, calls, of, played, steps, task
from waiting import BOUND


def test_every_member_holds_its_own_conversation_until_the_environment_ends_it():
    outcome = played(Scripted(steps), task(Counting))
    np.testing.assert_array_equal(outcome.scores, [[2, 1], [5, 3], [1, 1]])
    assert of(outcome, MEMBERS[0], 0).text == "5\nnow 5\n5\n"
    assert of(outcome, MEMBERS[1], 1).text == "2\nnow 7\n2\nnow 9\n2\n"
    assert {rollout.finish for rollout in outcome.rollouts} == {"stop"}


def test_each_turn_asks_all_that_are_open_in_one_call_of_the_engine():
    engine = Scripted(steps)
    played(engine, task(Counting), members_per_job=2)
    rows = [{(job.id, job.members[m]) for job in jobs for m, _ in job.pairs} for jobs in engine.jobs]
    open_ = [{(0, MEMBERS[0]), (0, MEMBERS[1]), (1, MEMBERS[2])}, {(0, MEMBERS[0]), (0, MEMBERS[1])}]
    assert rows == [*open_, *[{(0, MEMBERS[1])}] * 3]
    assert all(
        job.prompts[p].turn == turn for turn, jobs in enumerate(engine.jobs) for job in jobs for _, p in job.pairs
    )


class Async(Counting):
    """Counts as a client of a server does."""

    async def reset(self, start: int) -> str | None:
        return super().reset(start)

    async def step(self, text: str) -> str | None:
        return super().step(text)

    async def reward(self) -> float:
        return super().reward()


class AsyncTool(Calling):
    async def add(self, number: int) -> str:
        return super().add(number)

    add.__doc__ = Calling.add.__doc__


@pytest.mark.parametrize(("one", "other", "say"), [(Counting, Async, steps), (Calling, AsyncTool, calls)])
def test_async_environments_are_awaited(one, other, say):
    first, second = (played(Scripted(say), task(kind, CHATS)) for kind in (one, other))
    assert first.rollouts == second.rollouts


@pytest.mark.parametrize("answer", [("now 5", 1.0, False, {}), False], ids=str)
def test_an_answer_that_is_no_text_is_the_environments_fault(answer):
    class Gym(Counting):
        def step(self, text):
            return answer

    with pytest.raises(RewardError, match=r"TypeError: it answered .*: return the text alone, or None to end"):
        played(Scripted(steps), task(Gym))


def test_equal_transcripts_are_one_prompt():
    engine = Scripted(lambda member, prompt: "1")
    played(engine, task(Counting), conversation={"max_turns": 2})
    assert [len(jobs[0].prompts) for jobs in engine.jobs[:2]] == [2, 2]
    assert len(engine.jobs[1][0].pairs) == len(MEMBERS) * 2


@pytest.mark.parametrize(("temperature", "asked"), [(0.0, 1), (1.0, 3)])
def test_rows_with_equal_transcripts_are_asked_once_where_nothing_is_drawn(temperature, asked):
    same = examples([{"prompt": "same", "start": n} for n in (0, -3, 0)], "train")
    engine = Scripted(steps)
    outcome = played(engine, task(Mute, same), members=MEMBERS[:1], temperature=temperature)
    assert len(engine.jobs[0][0].pairs) == asked
    np.testing.assert_array_equal(outcome.scores, [[2, 3, 2]])


def test_the_model_reads_the_prompt_the_first_observation_and_all_that_was_said():
    engine = Scripted(steps)
    played(engine, task(Counting), members=MEMBERS[1:2])
    (second,) = engine.jobs[1]
    assert [p.content for p in second.prompts] == ["count from 0:2\nnow 2\n", "count from 5: go\n2\nnow 7\n"]


def test_a_chat_is_a_list_of_messages():
    engine = Scripted(steps)
    outcome = played(engine, task(Counting, CHATS), members=MEMBERS[:1])
    (second,) = engine.jobs[1]
    roles = [(message["role"], message["content"]) for message in second.prompts[0].content]
    assert roles == [("user", "Count."), ("assistant", "5"), ("user", "now 5")]
    assert of(outcome, MEMBERS[0], 0).text == "assistant: 5\nuser: now 5\nassistant: 5"


def test_tokens_are_summed_over_turns():
    rollout = of(played(Scripted(steps), task(Counting)), MEMBERS[0], 0)
    assert rollout.token_ids == tuple(b"55")
    assert rollout.prompt_tokens == len("count from 0:") + len("count from 0:5\nnow 5\n")


def test_a_conversation_ends_after_max_turns_and_is_scored_as_it_is():
    outcome = played(Scripted(steps), task(Counting), conversation={"max_turns": 2})
    np.testing.assert_array_equal(outcome.scores, [[2, 1], [2, 2], [1, 1]])
    assert of(outcome, MEMBERS[1], 0).finish == "length"
    assert of(outcome, MEMBERS[1], 0).text == "2\nnow 2\n2\nnow 4\n"
    assert of(outcome, MEMBERS[0], 0).finish == "stop"


def test_a_conversation_without_room_in_the_context_is_scored_as_it_is():
    engine = Scripted(lambda member, prompt: "" if prompt.turn == 2 else "2")
    outcome = played(engine, task(Counting), members=MEMBERS[:1])
    rollout = of(outcome, MEMBERS[0], 0)
    assert (rollout.text, rollout.finish, len(engine.jobs)) == ("2\nnow 2\n2\nnow 4\n", "length", 3)
    np.testing.assert_array_equal(outcome.scores, [[2, 2]])


def test_samples_are_conversations_of_their_own():
    seen: list[tuple[int, int]] = []

    def answer(member: Member, prompt) -> str:
        seen.append((prompt.turn, prompt.sample))
        return str(prompt.sample + 4)

    outcome = played(Scripted(answer), task(Counting), members=MEMBERS[:1], samples_per_prompt=2, temperature=1.0)
    assert set(seen) >= {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert [of(outcome, MEMBERS[0], 0, sample).text for sample in range(2)] == [
        "4\nnow 4\n4\nnow 8\n4\n",
        "5\nnow 5\n5\n",
    ]
    np.testing.assert_array_equal(outcome.scores, [[2.5, 1.5]])


# ---------------------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize(("format_", "role"), [("template", "tool"), ("text", "user")])
def test_tools_are_called_until_a_message_calls_none(format_, role):
    engine = Scripted(calls)
    outcome = played(engine, task(Calling, CHATS), members=MEMBERS[:1], conversation={"tools": format_})
    said = f"assistant: add(5)\n{role}: now 5\nassistant: add(5)\n{role}: now 10\nassistant: done"
    assert of(outcome, MEMBERS[0], 0).text == said
    np.testing.assert_array_equal(outcome.scores, [[2, 2]])


def test_tools_go_to_the_chat_template_or_into_the_text():
    engine = Scripted(calls)
    played(engine, task(Calling, CHATS), members=MEMBERS[:1], chat_template_kwargs={"x": 1})
    prompt = engine.jobs[0][0].prompts[0]
    assert prompt.template_kwargs["x"] == 1
    assert [tool["function"]["name"] for tool in prompt.template_kwargs["tools"]] == ["add"]
    engine = Scripted(calls)
    played(engine, task(Calling, CHATS), members=MEMBERS[:1], conversation={"tools": "text"})
    prompt = engine.jobs[0][0].prompts[0]
    assert "tools" not in prompt.template_kwargs
    assert "add(number): Add a number." in prompt.content[0]["content"]


def test_plain_text_prompts_have_their_tools_in_front():
    engine = Scripted(lambda member, prompt: "add(1)" if prompt.turn == 0 else "bye")
    outcome = played(engine, task(Calling), members=MEMBERS[:1])
    assert engine.jobs[0][0].prompts[0].content.endswith("Add a number.\n\ncount from 0:")
    assert of(outcome, MEMBERS[0], 0).text == "add(1)\nnow 1\nbye\n"


# -------------------------------------------------------------------------------------------------------- rewards


def test_reward_functions_receive_environments_transcripts_and_columns():
    def turns(environments, completions, start) -> list[float]:
        assert completions[0].count("\n") >= environments[0].turns
        return [environments[0].turns + 100.0 * start[0]]

    outcome = played(
        Scripted(steps), task(Counting, TEXTS, Reward("turns", turns), Reward("own", environment_reward, 2.0))
    )
    np.testing.assert_array_equal(outcome.by_reward[0], [[2, 501], [5, 503], [1, 501]])
    np.testing.assert_array_equal(outcome.scores, outcome.by_reward[0] + 2 * outcome.by_reward[1])


# -------------------------------------------------------------------------------------------- what may go wrong


def failing(where: str, fail: Callable[[], object]) -> type:
    """`Counting`, but one of its methods goes wrong for the member that says 100."""

    class Failing(Counting):
        def step(self, text: str) -> str | None:
            observation = super().step(text)
            if where == "step" and text == "100":
                fail()
            self.bad = text == "100"
            return observation

        def reward(self) -> float:
            if where == "reward" and self.bad:
                fail()
            return super().reward()

        def close(self) -> None:
            if where == "close" and self.bad:
                fail()

    return Failing


def raise_() -> None:
    raise ValueError("broken")


def exit_() -> None:
    raise SystemExit(1)


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize("fail", [raise_, exit_, hang, lambda: time.sleep(30)], ids=["raise", "exit", "hang", "sleep"])
@pytest.mark.parametrize("where", ["step", "reward"])
def test_what_an_environment_does_wrong_costs_its_sample_only(where, fail, caplog):
    outcome = played(Scripted(steps), task(failing(where, fail)), reward_timeout=2.0)
    np.testing.assert_array_equal(outcome.scores, [[2, 1], [5, 3], [math.nan, math.nan]])
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_the_traceback_of_the_first_failure_is_shown(caplog):
    played(Scripted(steps), task(failing("step", raise_)))
    (record,) = caplog.records
    assert "ValueError: broken" in record.getMessage()
    assert "in raise_" in record.getMessage()


@pytest.mark.parametrize("fail", [raise_, hang], ids=["raise", "hang"])
def test_closing_cannot_cost_anything(fail):
    outcome = played(Scripted(steps), task(failing("close", fail)), reward_timeout=2.0)
    assert not np.isnan(outcome.scores).any()


def test_a_reset_that_raises_costs_its_samples_and_they_are_not_asked():
    class Picky(Counting):
        def reset(self, start: int) -> str | None:
            if start:
                raise_()
            return super().reset(start)

    rows = (*TEXTS, replace(TEXTS[0], id=2))
    engine = Scripted(steps)
    outcome = played(engine, task(Picky, rows))
    np.testing.assert_array_equal(np.isnan(outcome.scores), [[False, True, False]] * 3)
    assert {prompt.content for prompt in engine.jobs[0][0].prompts} == {"count from 0:"}


def test_environments_that_mostly_fail_stop_the_run_and_say_why():
    def broken() -> Counting:
        raise OSError("no server")

    with pytest.raises(RewardError, match=r"6 of 6 conversations failed, more than max_rew") as found:
        played(Scripted(steps), task(broken))
    assert "most often the environment of task 'talk' raised OSError: no server. Mend it" in str(found.value)


def test_how_many_may_fail_is_a_setting_and_the_stop_says_how_to_go_on():
    work = task(failing("step", raise_))  # two of six conversations
    config = Config(engine="toy", task="toy")
    assert run_with(Scorer(work.rewards, config), work, config).failed == {"own": 2}
    strict = config.replace(max_reward_failure_rate=0.3)
    scorer = Scorer(work.rewards, strict)
    scorer.keep(lambda rows: None, "Resume with X.")
    with pytest.raises(RewardError, match=r"2 of 6 .* max_reward_failure_rate=0\.3 allows; .* Resume with X\.$"):
        run_with(scorer, work, strict)


def run_with(scorer: Scorer, work: Task, config: Config) -> Outcome:
    evaluator = Evaluator(Scripted(steps), work, config, scorer)
    return evaluator.evaluate(MEMBERS, work.train, plan=Plan(3, 0.1, MEMBERS))


def test_a_failure_is_shown_once_in_a_run_of_many_evaluations(caplog):
    work, config = task(failing("reward", raise_)), Config(engine="toy", task="toy")
    scorer = Scorer(work.rewards, config)
    for _ in range(3):
        assert run_with(scorer, work, config).failed == {"own": 2}
    (record,) = caplog.records
    assert record.getMessage().startswith("the reward function 'own' raised ValueError: broken; that completion is")


def test_a_conversation_on_which_a_reward_fails_is_not_scored_by_the_others():
    def strict(environments) -> list[float]:
        assert environments[0].total < 100
        return [1.0]

    outcome = played(
        Scripted(steps), task(Counting, TEXTS, Reward("strict", strict), Reward("own", environment_reward))
    )
    np.testing.assert_array_equal(outcome.by_reward[0], [[1, 1], [1, 1], [math.nan, math.nan]])
    np.testing.assert_array_equal(outcome.by_reward[1], [[2, 1], [5, 3], [math.nan, math.nan]])
    assert outcome.failed == {"strict": 2, "own": 0}


def test_a_conversation_that_every_reward_declines_is_told_once(caplog):
    played(Scripted(steps), task(Counting, TEXTS, Reward("none", hostile.none)))
    (record,) = caplog.records
    assert "every reward function returned None for a completion of prompt 0: it is not scored" in record.message


def test_rewards_of_conversations_run_where_other_rewards_run():
    """In worker processes, with their limits of time and memory, unless they need the environments themselves."""
    names = ("pid", "rings", "counts_turns", "takes_all", "counts_turns_by_keyword")
    rewards = [Reward(name, getattr(hostile, name)) for name in names]
    outcome = played(Scripted(steps), task(Counting, TEXTS, *rewards))
    pids, rang, turns, all_, by_keyword = outcome.by_reward
    assert os.getpid() not in pids
    assert (rang == 1.0).all()
    np.testing.assert_array_equal(turns, [[2, 1], [5, 3], [1, 1]])
    np.testing.assert_array_equal(by_keyword, turns)  # missed at first, given from then on
    assert (all_ == 0.0).all()


def test_a_reward_that_ends_its_process_costs_its_conversations_only():
    def broken(member: Member, prompt) -> str:
        return "100" if member == MEMBERS[2] else "10"

    outcome = played(Scripted(broken), task(Counting, TEXTS, Reward("leaves", hostile.leaves_at_100)))
    np.testing.assert_array_equal(outcome.scores, [[1, 1], [1, 1], [math.nan, math.nan]])
    assert outcome.failed == {"leaves": 2}


def test_many_that_hang_stop_the_run_without_waiting_for_all():
    begun: list[int] = []

    class Slow(Counting):
        def reset(self, start: int) -> str | None:
            begun.append(start)
            time.sleep(BOUND)
            return None

    rows = examples([{"prompt": str(n), "start": n} for n in range(100)], "train")
    with pytest.raises(RewardError, match=r"16 calls .* hang; .* took longer than reward_timeout=0\.01 seconds"):
        played(Scripted(steps), task(Slow, rows), reward_timeout=0.01)
    assert len(begun) < 100


def test_an_environment_without_a_reward_says_what_is_missing():
    class Bare:
        def reset(self) -> None: ...
        def step(self, text: str) -> None: ...

    with pytest.raises(RewardError, match="the environment 'Bare' has no 'reward'"):
        played(Scripted(steps), task(Bare))


def test_environments_are_closed():
    closed: list[int] = []

    class Closing(Counting):
        def close(self) -> None:
            closed.append(self.total)

    played(Scripted(steps), task(Closing))
    assert len(closed) == 6


# -------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": "number_guessing", "kl_steps": 5}, "kl_steps=5 measures single answers, not conversations"),
        ({"conversation": {"max_turns": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_with_conversations_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.create(settings)
