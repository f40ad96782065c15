"""Whole runs on reference answers: nothing is generated, no reward function is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import load_engine, save_family
from runs import rows, toy
from seedtune import ESTrainer, evaluate
from seedtune.config.config import Config
from seedtune.config.yaml_file import load_config
from seedtune.errors import ConfigError, DataError
from seedtune.planning.plan import plan_config
from seedtune.rewards.base import Reward
from seedtune.rollouts.evaluator import Evaluator
from seedtune.tasks import create
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.reference_answers import reference_answers, scored_by_the_engine
from seedtune.types import UNPERTURBED, Member, Plan, Prompt

SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
CHOICES = [
    {"prompt": f"{a} is", "choices": ["even", "odd"] if first else ["odd", "even"], "answer": int(a % 2 == first)}
    for a in range(12)
    for first in (a // 3 % 2,)
]
"""Which choice comes first has nothing to do with which is right."""


def tiny(folder: Path, objective: str, **settings: Any) -> Config:
    """A run of a random model of two layers, a second long."""
    small = {
        "generations": 12,
        "population": 24,
        "prompts_per_generation": 16,
        "sigma": 0.02,
        "save_steps": 0,
        "seed": 1,
    }
    output = str(folder.parent / f"run-{objective}")
    return Config(model=str(folder), output_dir=output, objective=objective, **{**small, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama") / "model")


def test_es_raises_the_log_probability_of_reference_answers(folder: Path) -> None:
    run = ESTrainer(args=tiny(folder, "logprob"), train_dataset=SUMS, eval_dataset=SUMS)
    last = run.train()
    first = next(row for row in rows(run.paths.metrics) if "eval_reward" in row)
    assert last["eval_reward"] > first["eval_reward"] + 1.0
    assert last["eval_rewards/logprob/mean"] == last["eval_reward"]
    (sample, *_) = rows(run.paths.samples)
    assert sample["completion"] == SUMS[sample["prompt_id"]]["answer"]


def test_es_raises_the_accuracy_among_choices(folder: Path) -> None:
    run = ESTrainer(args=tiny(folder, "choice_accuracy"), train_dataset=CHOICES, eval_dataset=CHOICES)
    run.train()
    found = {row["generation"]: row["eval_reward"] for row in rows(run.paths.metrics) if "eval_reward" in row}
    assert found[run.generation] > found[0]


def test_scores_are_the_means_and_choices_of_the_engines_likelihoods(folder: Path) -> None:
    engine = load_engine(folder)
    members = (Member(0, 0, 1), UNPERTURBED)
    data = examples(CHOICES, "train")
    config = Config(objective="choice_accuracy")
    work = Task("choices", data, data, (Reward("choice_accuracy", scored_by_the_engine),))
    outcome = Evaluator(engine, work, config).evaluate(members, data, plan=Plan(0, 0.05, members))
    ids = [[engine.tokenizer.hf(choice)["input_ids"] for choice in row["choices"]] for row in CHOICES]
    for place, row in enumerate(CHOICES):
        prompts = [Prompt(0, row["prompt"])] * 2
        means = [np.mean(logs) for logs in engine.logprobs(prompts, ids[place])]
        best = int(np.argmax(means))
        assert outcome.row(UNPERTURBED)[place] == float(best == row["answer"])
        rollout = next(r for r in outcome.rollouts if (r.member, r.prompt) == (UNPERTURBED, place))
        assert rollout.text == row["choices"][best]


def test_the_toy_engine_learns_reference_answers_too(tmp_path: Path) -> None:
    data = [{"prompt": f"number {index}", "answer": "0." if index % 2 else "-0."} for index in range(12)]
    settings = {"generations": 20, "population": 24, "alpha": None, "sigma": 0.2, "prompts_per_generation": 12}
    run = ESTrainer(
        args=toy(tmp_path, objective="logprob", eval_steps=0, **settings), train_dataset=data, eval_dataset=data
    )
    last = run.train()
    first = next(row for row in rows(run.paths.metrics) if "eval_reward" in row)
    assert last["eval_reward"] > first["eval_reward"] + 0.5


def test_a_built_in_task_trains_on_its_answers(tmp_path: Path) -> None:
    run = ESTrainer(args=toy(tmp_path, objective="logprob", generations=2).replace(task="conciseness"))
    assert run.train()["eval_reward"] < 0.0


def test_the_example_of_the_documentation_trains(tmp_path: Path) -> None:
    settings = {"engine": "toy", "output_dir": str(tmp_path / "run"), "generations": 1, "eval_prompts": 4}
    config = load_config(Path(__file__).parents[3] / "examples" / "reference-answers.yaml").replace(**settings)
    assert config.objective == "logprob"
    assert ESTrainer(args=config).train()["eval_reward"] < 0.0


def test_reward_functions_beside_reference_answers_are_refused(tmp_path: Path) -> None:
    config = toy(tmp_path, objective="logprob")
    with pytest.raises(ConfigError, match="objective=logprob is a reward by itself"):
        ESTrainer(args=config, train_dataset=SUMS, reward_funcs=lambda completions: [0.0])


def test_reference_answers_cannot_be_planned(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be planned: only single completions can"):
        plan_config(tiny(folder, "logprob").replace(task="conciseness"))


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        ("logprob", {"target": "4"}, r"row 1 has no column 'answer' \(it holds \['target'\]\)"),
        ("logprob", {"answer": 4}, "row 1: the column 'answer' is 4. Give a text that is not empty"),
        ("logprob", {"answer": ""}, "is ''. Give a text"),
        ("choice_accuracy", {"choices": "ab", "answer": 0}, "'choices' is 'ab'. Give a list of two texts"),
        ("choice_accuracy", {"choices": ["a"], "answer": 0}, "Give a list of two texts or more"),
        ("choice_accuracy", {"choices": ["a", ""], "answer": 0}, "none of them empty"),
        ("choice_accuracy", {"choices": ["a", "b"], "answer": 2}, "'answer' is 2. Give a choice's text, its index"),
        ("choice_accuracy", {"choices": ["a", "b"], "answer": True}, r"its index \(from 0 to 1\) or its letter"),
        ("choice_accuracy", {"choices": ["a", "b"], "answer": "C"}, "Give a choice's text"),
    ],
)
def test_rows_without_answers_are_named_before_the_run_begins(objective, row, message, tmp_path: Path) -> None:
    fine = {"prompt": "1+1=", "answer": "2", "choices": ["1", "2"]}
    with pytest.raises(DataError, match=message):
        ESTrainer(args=toy(tmp_path, objective=objective), train_dataset=[fine, {"prompt": "2+2=", **row}])


@pytest.mark.parametrize("answer", ["A", 1, "B"])
def test_the_right_choice_is_named_by_its_text_its_index_or_its_letter(answer: Any) -> None:
    config = Config(objective="choice_accuracy")
    choices = ["B", "A"] if answer == "A" else ["no", "yes"]
    (example,) = examples([{"prompt": "?", "choices": choices, "answer": answer}], "train")
    assert reference_answers(config, example).right == 1


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    data = [{"prompt": "1+1=", "target": "2"}] * 2
    config = toy(tmp_path, objective="logprob", likelihood={"answer_column": "target"}, generations=1)
    assert ESTrainer(args=config, train_dataset=data, eval_dataset=data).train()["eval_reward"] < 0.0


def test_a_run_on_reference_answers_is_evaluated_and_watches_other_tasks(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"number {n}", "answer": str(n)}) + "\n" for n in range(6)))
    config = toy(tmp_path / "run", generations=1, objective="logprob", eval_tasks=("toy",))
    run = ESTrainer(args=config.replace(task="custom"), train_dataset=str(path), eval_dataset=str(path))
    last = run.train()
    closeness = [-abs(float(text) - example.columns["answer"]) for text, example in _said(run)]
    assert last["eval_toy/reward"] == pytest.approx(np.mean(closeness))
    alarms = [alarm for row in rows(run.paths.metrics) for alarm in row.get("alarms", ())]
    assert not [alarm for alarm in alarms if "completions" in alarm]
    (subject,) = evaluate(run.paths.root).subjects
    assert subject.results[0].estimates["reward"].value == pytest.approx(last["eval_reward"])


def _said(run: ESTrainer) -> list[tuple[str, Any]]:
    """What the trained model says to the toy task's held-out prompts."""
    task = create("toy")
    config = Config(engine="toy", task="toy", model="toy", toy=run.config.toy, eval_prompts=3)
    held = task.test[: config.eval_prompts]
    outcome = Evaluator(run.load(), task, config).unperturbed(held, generation=1)
    return [(rollout.text, held[rollout.prompt]) for rollout in outcome.rollouts]
