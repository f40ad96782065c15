"""What is measured of a model's answers: by hand, on an engine that says what it is told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from scores import brief, ends_right, one_character
from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import EngineTimes
from seedtune.engines.toy.engine import Characters
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.evaluation.held_out import (
    PLAIN,
    EvalConfig,
    check_eval_config,
    during_training,
    evaluate,
    other,
    others,
    prompts_of,
)
from seedtune.evaluation.prompt_baseline import WORDINGS, Wording, choose, reworded, voted
from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.reference_answers import scored_by_the_engine
from seedtune.types import UNPERTURBED, Rollout

CONFIG = Config(engine="toy", alpha=0.1, objective="pass_at_k", samples_per_prompt=4, temperature=0.5)


class Told:
    """Answers by the prompt's text: a greedy one, and what its samples are."""

    def __init__(self, greedy, samples=None, finish="stop") -> None:
        self.greedy, self.samples, self.finish = greedy, samples or {}, finish
        self.asked: list[tuple[float, int, int, int]] = []

    def evaluate(self, jobs):
        for job in jobs:
            sampling = job.sampling
            self.asked.append((sampling.temperature, sampling.samples, sampling.seed, sampling.generation))
            for index, prompt in enumerate(job.prompts):
                key = self._key(prompt.content)
                for sample in range(sampling.samples):
                    text = self.samples[key][sample] if sampling.temperature else self.greedy(key)
                    yield Rollout(job.id, UNPERTURBED, index, sample, text, tuple(map(ord, text)), 1, self.finish)

    def _key(self, content) -> str:
        return content if isinstance(content, str) else content[-1]["content"]

    def take_times(self):
        return EngineTimes()


ROWS = [{"prompt": prompt, "answer": answer} for prompt, answer in (("1+1", "2"), ("2+2", "4"), ("3+3", "6"))]


def task(**changes) -> Task:
    rewards = changes.pop("rewards", (Reward("ends_right", ends_right),))
    data = examples(ROWS, "test")
    made = {"train": data, "test": data, "rewards": rewards, "full_marks": 1.0, **changes}
    return Task("sums", **made)


def values(found) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in found.estimates.items()}


GREEDY = {"1+1": "2", "2+2": "", "3+3": "?"}.__getitem__


def test_greedy_measures_are_what_one_counts_by_hand():
    engine = Told(GREEDY)
    found = evaluate(engine, task(), CONFIG, EvalConfig())
    assert values(found) == {
        "accuracy": pytest.approx(1 / 3),  # what could not be scored is wrong
        "reward": 0.5,
        "length": pytest.approx(2 / 3),
        "truncated": 0.0,
        "empty": pytest.approx(1 / 3),
        "repeating": 0.0,
        "unscored": pytest.approx(1 / 3),
    }
    assert (found.prompts, found.wording, found.votes) == (3, PLAIN, None)
    assert engine.asked == [(0.0, 1, 0, 0)]  # greedy whatever the training's temperature and samples


def test_accuracy_needs_full_marks_and_counts_the_sum_of_rewards():
    several = (Reward("ends_right", ends_right), Reward("brief", brief, 0.5))
    assert "accuracy" not in values(evaluate(Told(GREEDY), task(full_marks=None), CONFIG, EvalConfig()))
    found = values(evaluate(Told(lambda _: "long answer 2"), task(rewards=several), CONFIG, EvalConfig()))
    assert found["accuracy"] == 0.0
    assert found["reward/ends_right"] == pytest.approx(1 / 3)
    assert found["reward/brief"] == -1.0


SAMPLES = {"1+1": ["2", "2", "3", "2"], "2+2": ["5", "4", "5", "4"], "3+3": ["", "", "6", ""]}


def test_samples_give_pass_at_k_and_votes():
    engine = Told(GREEDY, SAMPLES)
    found = values(evaluate(engine, task(), CONFIG, EvalConfig(samples=4, ks=(1, 2, 4), temperature=0.9, seed=3)))
    assert engine.asked[1] == (0.9, 4, 3, 0)
    assert found["pass@1"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 4) / 3)
    assert found["pass@2"] == pytest.approx((1 + 5 / 6 + 1 / 2) / 3)
    assert found["pass@4"] == 1.0
    assert found["maj@4"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["majority_reward@4"] == found["maj@4"]
    assert found["sampled_reward"] == pytest.approx(found["pass@1"])


def test_votes_are_among_answers_that_the_task_takes_out_of_the_text():
    reasons = {key: [f"{index}: so {text}" for index, text in enumerate(held)] for key, held in SAMPLES.items()}
    plain = values(evaluate(Told(GREEDY, reasons), task(), CONFIG, EvalConfig(samples=4)))
    taken = task(answer=lambda text: text.rpartition(" ")[2])
    assert plain["maj@4"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 4) / 3)
    assert values(evaluate(Told(GREEDY, reasons), taken, CONFIG, EvalConfig(samples=4)))["maj@4"] == pytest.approx(
        5 / 6
    )


def test_an_answer_function_that_raises_is_named():
    with pytest.raises(RewardError, match="the answer function of task 'sums' raised ZeroDivisionError"):
        evaluate(Told(GREEDY, SAMPLES), task(answer=lambda _: str(1 / 0)), CONFIG, EvalConfig(samples=2))


def test_a_sample_without_reward_is_wrong_and_left_out_of_mean_rewards():
    held = {**SAMPLES, "1+1": ["?", "?", "?", "2"]}
    found = evaluate(Told(GREEDY, held), task(), CONFIG, EvalConfig(samples=4))
    assert found.columns["pass@1"][0] == 0.25
    assert found.columns["majority_reward@4"][0] == 0.0  # the vote goes to what has no reward
    assert found.estimates["majority_reward@4"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ks": (2,)}, "need samples"),
        ({"samples": -1}, "need samples"),
        ({"samples": 4, "ks": (8,)}, "every k is from 1 to the samples"),
        ({"samples": 4, "temperature": 0.0}, "use one above 0"),
        ({"samples": 4, "temperature": math.nan}, "use one above 0"),
        ({"limit": 0}, "at least one prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_fix(settings, words):
    with pytest.raises(ConfigError, match=words):
        EvalConfig(**settings)


def test_a_limit_takes_the_first_prompts():
    assert evaluate(Told(GREEDY), task(), CONFIG, EvalConfig(limit=2)).prompts == 2
    assert len(prompts_of(task(), CONFIG.replace(eval_prompts=1))) == 1


def test_a_task_that_cannot_be_asked_is_refused():
    with pytest.raises(ConfigError, match="task 'sums' has no held-out prompts"):
        prompts_of(task(test=()), CONFIG)
    with pytest.raises(ConfigError, match="system_prompt='x' needs chat prompts"):
        prompts_of(task(), CONFIG.replace(system_prompt="x"))


# ------------------------------------------------------------------------------ training


def test_other_tasks_are_measured_under_their_names():
    config = CONFIG.replace(eval_tasks=("toy",), samples_per_prompt=1, temperature=0.0, objective="mean")
    own = task()
    engine = Told(lambda key: "0.5" if key.startswith("number") else GREEDY(key))
    metrics, outcome = during_training(engine, (own, *others(config, own)), config, generation=7)
    assert metrics["eval_reward"] == 0.5
    assert metrics["eval_accuracy"] == pytest.approx(1 / 3)
    assert metrics["eval_toy/reward"] < 0.0
    assert metrics["eval_toy/length"] == 3.0
    assert "eval_toy/accuracy" not in metrics
    assert [rollout.text for rollout in outcome.rollouts] == ["2", "", "?"]
    assert engine.asked == [(0.0, 1, 0, 7)] * 2


def test_other_tasks_need_held_out_prompts_of_the_own():
    with pytest.raises(ConfigError, match=r"eval_tasks=\['toy'\] .* 'sums' has none"):
        others(CONFIG.replace(eval_tasks=("toy",)), task(test=()))


def test_prompts_of_a_task_beside_the_runs_own_are_read_first_and_may_be_dropped():
    watched = task(
        train=examples([{"prompt": "\ud800"}], "train"), test=examples([{"prompt": "\ud800"}, {"prompt": "b"}], "test")
    )
    with pytest.raises(DataError, match="row 0 of the held-out data: prompt 0 holds half a character"):
        other(CONFIG, watched)
    found = other(CONFIG.replace(prompt_truncation="drop"), watched)
    assert ([row.id for row in found.test], found.train) == ([1], watched.train)


@pytest.mark.parametrize(("limit", "eval_prompts"), [(1, 0), (None, 1), (1, 2)])
def test_rows_of_another_task_that_are_not_evaluated_are_not_read(limit, eval_prompts):
    watched = task(test=examples([{"prompt": "a"}, {"prompt": "\ud800"}], "test"))
    config = CONFIG.replace(eval_prompts=eval_prompts)
    assert [row.id for row in other(config, watched, limit).test] == [0]
    with pytest.raises(DataError, match="row 1 of the held-out data"):
        other(config, watched, 2)


# ------------------------------------------------------------------------------ baseline


def split_task(**changes) -> Task:
    return task(**{"train": examples(ROWS[:2], "train"), "test": examples(ROWS[2:], "test"), **changes})


def test_a_wording_that_the_model_cannot_read_is_not_among_the_candidates(monkeypatch, caplog):
    def lengths(self, prompts):
        if any(str(prompt.content).startswith("You") for prompt in prompts):
            raise DataError("prompt 0 is refused.")
        return [1] * len(prompts)

    monkeypatch.setattr(Characters, "lengths", lengths)
    engine = Told(lambda key: "4" if key.startswith("You") else "?")
    assert choose(engine, split_task(), CONFIG, EvalConfig()) == WORDINGS[0]
    assert "the wording 'careful' is left out: row 0 of the held-out data: prompt 0 is refused." in caplog.text


def test_wordings_are_tried_on_prompts_that_are_evaluated_with_one_tokenizer(monkeypatch, caplog):
    made = []
    monkeypatch.setattr(engines, "tokenizer", lambda config: made.append(config) or Characters())
    rows = split_task(test=examples([{"prompt": "a"}, {"prompt": "\ud800"}], "test"))
    choose(Told(lambda _: "no"), rows, CONFIG, EvalConfig(limit=1))
    assert (len(made), caplog.text) == (1, "")
    choose(Told(lambda _: "no"), rows, CONFIG.replace(eval_prompts=1), EvalConfig())
    assert (len(made), caplog.text) == (2, "")


def test_the_prompt_is_chosen_on_training_prompts_alone():
    seen = []

    def answer(key: str) -> str:
        seen.append(key)
        return "4" if "Give only the final answer" in key else "it is 4"

    chosen = choose(Told(answer), split_task(rewards=(Reward("short", one_character),)), CONFIG, EvalConfig())
    assert chosen.name == "only the answer"
    assert len(seen) == 2 * len(WORDINGS)
    assert not any("3+3" in key for key in seen)


def test_the_prompt_is_chosen_on_all_training_prompts_if_held_out_sets_have_names():
    seen: list[str] = []
    choose(Told(lambda key: seen.append(key) or "no"), split_task(test_sets={"one": range(1)}), CONFIG, EvalConfig())
    assert len(seen) == 2 * len(WORDINGS)


def test_votes_of_every_named_set_stand_beside_those_of_all():
    sets = task(test_sets={"one": range(1), "rest": range(1, 3)})
    found = values(voted(evaluate(Told(GREEDY, SAMPLES), sets, CONFIG, EvalConfig(samples=4))))
    assert found == {
        "accuracy": pytest.approx(5 / 6), "one/accuracy": 1.0, "rest/accuracy": 0.75,
        "reward": pytest.approx(5 / 6), "one/reward": 1.0, "rest/reward": 0.75,
    }  # fmt: skip


def test_the_tasks_own_prompt_wins_a_tie():
    assert choose(Told(lambda _: "no"), split_task(), CONFIG, EvalConfig()) is WORDINGS[0]


@pytest.mark.parametrize(
    ("wording", "prompt", "system", "expected"),
    [
        (Wording("a", after="Go."), "x", None, "x\n\nGo."),
        (Wording("s", system="Be."), "x", None, "Be.\n\nx"),
        (Wording("a", after="Go."), [("user", "x")], None, [("user", "x\n\nGo.")]),
        (Wording("s", system="Be."), [("user", "x")], None, [("system", "Be."), ("user", "x")]),
        (Wording("s", system="Be."), [("system", "S"), ("user", "x")], None, [("system", "S\nBe."), ("user", "x")]),
        (Wording("s", system="Be."), [("user", "x")], "S", [("user", "x")]),
    ],
)
def test_words_are_put_where_they_belong(wording, prompt, system, expected):
    chat = not isinstance(prompt, str)
    rows = [{"prompt": [{"role": r, "content": c} for r, c in prompt] if chat else prompt}]
    changed, config = reworded(wording, task(test=examples(rows, "test")), CONFIG.replace(system_prompt=system))
    found = changed.test[0].prompt
    assert ([(m["role"], m["content"]) for m in found] if chat else found) == expected
    assert config.system_prompt == ("S\nBe." if system else None)


def test_votes_stand_under_the_names_of_single_answers():
    found = voted(evaluate(Told(GREEDY, SAMPLES), task(), CONFIG, EvalConfig(samples=4)))
    assert values(found) == {"accuracy": pytest.approx(5 / 6), "reward": pytest.approx(5 / 6)}
    assert found.votes == 4
    assert np.array_equal(found.columns["accuracy"], [1.0, 0.5, 1.0])


def test_nothing_is_sampled_and_no_divergence_measured_where_answers_are_given():
    given = replace(task(), rewards=(Reward("logprob", scored_by_the_engine),))
    for eval_config in (EvalConfig(samples=2), EvalConfig(kl=True)):
        with pytest.raises(ConfigError, match="generates nothing"):
            check_eval_config(given, eval_config)


def test_the_divergence_of_a_conversation_is_refused():
    with pytest.raises(ConfigError, match="is a conversation"):
        check_eval_config(replace(task(), environment=object), EvalConfig(kl=True))
