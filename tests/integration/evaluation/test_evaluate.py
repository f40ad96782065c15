"""Evaluations from end to end: the command, runs against models, exports, and lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import models
import runs
from scores import matches, small_letters
from seedtune import EvalConfig, evaluate
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.evaluation.evaluate import _task
from seedtune.evaluation.models import settings_of
from seedtune.rewards.base import Reward
from seedtune.run import directory, replay
from seedtune.run.artifacts.export import export_run
from seedtune.tasks import create
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.trainer import ESTrainer
from waiting import BOUND


def strict(text: str):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def measures(found: dict, subject: int = 0, task: int = 0) -> dict:
    return found["subjects"][subject]["results"][task]["measures"]


# -------------------------------------------------------------------------- the command


def test_eval_writes_a_stable_schema_without_nan(command, run):
    code, output, errors = command("eval", run, "--samples", "4", "--k", "1,4", "--kl", "--json", "-", "--limit", "3")
    assert (code, errors) == (0, "")
    found = strict(output)
    assert set(found) == {"schema", "seedtune", "what", "model", "eval_config", "settings", "subjects"}
    assert found["schema"] == 1
    assert found["eval_config"]["ks"] == [1, 4]
    (subject,) = found["subjects"]
    assert set(subject) == {"name", "generation", "fingerprint", "results"}
    assert (subject["name"], subject["generation"]) == ("generation 5", 5)
    assert subject["fingerprint"] == runs.fingerprint(run)
    (result,) = subject["results"]
    assert set(result) == {"task", "prompts", "wording", "votes", "seconds", "measures"}
    assert (result["task"], result["prompts"]) == ("toy", 3)
    assert set(result["measures"]) == {
        "reward", "length", "truncated", "empty", "repeating", "unscored", "sampled_reward", "majority_reward@1",
        "majority_reward@4", "kl",
    }  # fmt: skip
    assert all(set(one) == {"value", "low", "high"} for one in result["measures"].values())
    assert result["measures"]["kl"]["value"] > 0.0


def test_a_run_is_compared_with_its_base_model_prompt_by_prompt(command, run):
    code, output, _ = command("eval", run, "--baseline", "base", "--json", "-")
    assert code == 0
    found = strict(output)
    assert [one["name"] for one in found["subjects"]] == ["generation 5", "base model"]
    difference = found["subjects"][1]["results"][0]["first_less_this"]["reward"]
    gained = measures(found)["reward"]["value"] - measures(found, 1)["reward"]["value"]
    assert difference["value"] == pytest.approx(gained)
    assert difference["low"] > 0.0
    _, shown, _ = command("eval", run, "--baseline", "base")
    assert "first less base model" in shown


def test_several_tasks_are_evaluated_by_one_loaded_model(command, run, monkeypatch):
    loads = []
    load = replay.load
    monkeypatch.setattr(replay, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    code, output, _ = command("eval", run, "--task", "toy", "--task", "conciseness", "--limit", "2")
    assert code == 0
    assert "toy held out, 2 prompts" in output
    assert "conciseness held out, 2 prompts" in output
    assert len(loads) == 1


def test_training_prompts_are_read_only_where_they_are_used():
    config = Config(engine="toy", model="toy", task="toy", output_dir="x")
    whole = create("toy")
    for practice in (1, 3):
        task = _task("toy", config, practice, None)
        assert (len(task.train), len(task.test)) == (practice, len(whole.test))
    assert len(_task("toy", config, 1, 2).test) == len(_task("conciseness", config, 1, 2).test) == 2


def test_the_baseline_shows_the_base_models_best_prompt_and_votes(command, run):
    code, output, _ = command("eval", run, "--prompt-baseline", "--samples", "2", "--json", "-")
    assert code == 0
    found = strict(output)
    assert [one["name"] for one in found["subjects"]] == [
        "generation 5", "base model", "base model, majority of 2", "base model, best prompt",
        "base model, best prompt, majority of 2",
    ]  # fmt: skip
    assert [one["results"][0]["votes"] for one in found["subjects"]] == [None, None, 2, None, 2]
    assert len({one["results"][0]["wording"] for one in found["subjects"][3:]}) == 1
    assert "majority_reward@2" in measures(found, 0)


def test_the_best_random_members_vote(command, run):
    """On the toy landscape the best of many members are better than its base model, and the same at every call."""
    code, output, _ = command("eval", run, "--randopt", "64", "--json", "-")
    assert code == 0
    found = strict(output)
    assert [one["name"] for one in found["subjects"]] == [
        "generation 5", "base model", "base model, vote of 8 of 64 random members",
    ]  # fmt: skip
    assert found["subjects"][2]["results"][0]["votes"] == 8
    assert measures(found, 2)["reward"]["value"] > measures(found, 1)["reward"]["value"]
    again = strict(command("eval", run, "--randopt", "64", "--json", "-")[1])
    assert measures(again, 2) == measures(found, 2)


def test_too_few_random_members_are_refused(command, run):
    code, _, errors = command("eval", run, "--randopt", "3")
    assert code == 1
    assert "randopt=3: choose the best of at least 16 members" in errors


def test_a_file_that_cannot_be_is_named_before_anything_is_evaluated(command, run, monkeypatch):
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setattr("seedtune.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    code, _, errors = command("eval", run, "--json", "$UNSET/result.json")
    assert code == 2
    assert "the variable UNSET is not set" in errors


def test_a_result_can_be_written_and_kept_with_the_run(command, run, tmp_path):
    target = tmp_path / "result.json"
    code, _, _ = command("eval", run, "--json", target, "--save", "--baseline", "2")
    assert code == 0
    (kept,) = runs.rows(directory.RunPaths(run).evaluations)
    written = strict(target.read_text())
    for found in (kept, written):
        for subject in found["subjects"]:
            for result in subject["results"]:
                result.pop("seconds")
    assert kept == written
    page = directory.RunPaths(run).report.read_text()
    assert ">toy: 3 held-out prompts, 95 % intervals</caption>" in page
    assert "<th scope=col class=n>generation 2</th>" in page
    assert ">All evaluations while training</summary>" in page


def test_the_best_generation_is_evaluated_by_the_words_of_export(command, failure, run):
    rows = [row for row in runs.rows(directory.RunPaths(run).metrics) if "eval_reward" in row]
    best = max(rows, key=lambda row: (row["eval_reward"], -row["generation"]))
    found = strict(command("eval", run, "--generation", "best", "--json", "-")[1])
    assert found["subjects"][0]["generation"] == best["generation"]
    assert measures(found)["reward"]["value"] == pytest.approx(best["eval_reward"])
    assert evaluate(run, generation="lowest:reward").subjects[0].generation == 0
    assert "no evaluation of the run has eval_acuracy." in failure("eval", run, "--generation", "best:acuracy")
    assert "--generation needs a run directory" in failure(
        "eval", "toy", "--set", "engine=toy", "--task", "toy", "--generation", "best"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "1,x"], "--k 'x' is not a number. Give 1,4,16."),
        (["--baseline", "first"], "--baseline 'first' is not a number. Give base, or a generation such as 20."),
        (["--k", "0"], "pass@k and maj@k need samples"),
        (["--baseline", "9"], "generation 9 is not in"),
        (["--config", "other.yaml"], "is a run and has settings of its own"),
        (["--task", "toi"], "task='toi' is not a built-in task. Did you mean 'toy'?"),
    ],
)
def test_what_makes_no_sense_is_refused(failure, run, options, message):
    assert message in failure("eval", run, *options)


@pytest.mark.parametrize("option", [["--kl"], ["--baseline", "base"], ["--save"]], ids=" ".join)
def test_a_model_has_no_base_and_no_run_to_keep_results_with(failure, option):
    assert "'toy' is not one" in failure("eval", "toy", "--set", "engine=toy", "--set", "task=toy", *option)


def test_other_tasks_are_watched_while_training(command, tmp_path):
    config = runs.write_config(runs.toy(tmp_path / "run", eval_tasks=["conciseness"]), tmp_path / "config.yaml")
    code, output, _ = command("train", config)
    assert code == 0
    rows = [row for row in runs.rows(directory.RunPaths(tmp_path / "run").metrics) if "eval_reward" in row]
    assert [row["generation"] for row in rows] == [0, 2, 4, 5]
    assert all("eval_conciseness/length" in row for row in rows)
    assert "conciseness reward" in output
    assert "conciseness/reward" in directory.RunPaths(tmp_path / "run").report.read_text()


def test_generations_are_guarded_and_a_resumed_run_knows_the_same_base(tmp_path):
    config = runs.toy(tmp_path / "run")
    ESTrainer(args=config).train()
    ESTrainer(args=config.replace(output_dir=str(tmp_path / "cut"), generations=3)).train()
    ESTrainer(args=config.replace(output_dir=str(tmp_path / "cut"))).train(resume_from_checkpoint=True)
    guarded = [
        [row["completions/length_change"] for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]
        for root in (tmp_path / "run", tmp_path / "cut")
    ]
    assert guarded[0] == guarded[1]
    assert guarded[0][0] == pytest.approx(1.0, abs=0.2)


def test_suspicious_samples_are_shown_with_the_reason_and_both_answers(command, run):
    code, output, _ = command("inspect", run)
    assert (code, output.strip()) == (0, f"{run}: no recorded answer looks suspicious")
    path = directory.RunPaths(run).samples
    rows = runs.rows(path)
    rows[-1]["completion"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output, _ = command("inspect", run)
    assert code == 0
    assert "1 of 1 suspicious answers" in output
    assert "empty" in output


# ------------------------------------------------------------------- exports and lm-eval

PROMPTS = [f"Say {word}" for word in ("a", "b", "hello", "why", "no", "yes", "this", "that")]


TASK = Task(
    name="letters",
    train=examples([{"prompt": text} for text in PROMPTS], "train"),
    test=examples([{"prompt": text} for text in PROMPTS], "test"),
    rewards=(Reward("small_letters", small_letters),),
    full_marks=0.5,
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request, tmp_path_factory) -> Path:
    """A finished run of a tiny model, which no test changes."""
    import torch

    folder, dtype = tmp_path_factory.mktemp("trained"), request.param
    base = models.save_family("llama", folder / "base", dtype=getattr(torch, dtype))
    small = {"population": 4, "sigma": 0.05, "alpha": 0.1, "generations": 4, "prompts_per_generation": 2}
    more = {"max_completion_length": 8, "save_steps": 0, "seed": 3, "transformers": {"device": "cpu"}}
    config = Config(model=str(base), output_dir=str(folder / "run"), **small, **more)
    rows = [{"prompt": text} for text in PROMPTS]
    ESTrainer(args=config, reward_funcs=small_letters, train_dataset=rows, eval_dataset=rows[:2]).train()
    return folder / "run"


def test_an_exported_model_is_evaluated_to_the_numbers_of_the_run_at_that_generation(trained, tmp_path):
    run = trained
    export_run(run, tmp_path / "model", generation=3)
    eval_config = EvalConfig(samples=4, ks=(1, 2, 4), temperature=1.0)
    ours = evaluate(run, on=[TASK], generation=3, eval_config=eval_config)
    config = settings_of(tmp_path / "model", file=directory.RunPaths(run).config)
    theirs = evaluate(tmp_path / "model", on=[TASK], eval_config=eval_config, config=config)
    assert ours.subjects[0].results[0].estimates == theirs.subjects[0].results[0].estimates
    assert ours.subjects[0].results[0].estimates["sampled_reward"].low is not None
    other = evaluate(run, on=[TASK], generation=0, eval_config=eval_config)
    assert ours.subjects[0].results[0].estimates != other.subjects[0].results[0].estimates


LM_EVAL_TASK = """task: said
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["<eos>"]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["float32"], indirect=True)
def test_lm_eval_runs_on_an_exported_model_and_agrees(trained, tmp_path):
    """The command of docs/evaluation.md, offline, with the same task on both sides."""
    export_run(trained, tmp_path / "model")
    engine = models.load_engine(tmp_path / "model")
    rollouts = models.answers(engine, models.job(models.text_prompts(*PROMPTS), max_tokens=8))
    said = [rollout.text.strip() for rollout in rollouts.values()]
    rows = [
        {"prompt": text, "answer": said[index] if index < 5 else "something else"} for index, text in enumerate(PROMPTS)
    ]
    task = Task("said", TASK.train, examples(rows, "test"), (Reward("matches", matches),), full_marks=1.0)
    ours = evaluate(
        tmp_path / "model", on=[task], config=Config(model=str(tmp_path / "model"), max_completion_length=8)
    )
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks" / "said.yaml").write_text(LM_EVAL_TASK.format(data=tmp_path / "rows.jsonl"))
    theirs = lm_eval(tmp_path)
    assert theirs == ours.subjects[0].results[0].estimates["accuracy"].value == 5 / 8


def lm_eval(folder: Path) -> float:
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32", "--tasks", "said"]
    more = ["--include_path", folder / "tasks", "--device", "cpu", "--batch_size", "1", "--output_path", folder / "out"]
    offline = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments, *map(str, more)],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
        env={**os.environ, **offline, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (folder / "out").rglob("results_*.json")
    return float(json.loads(written.read_text())["results"]["said"]["exact_match,none"])


# ------------------------------------------------------- runs without held-out answers


def test_a_run_that_holds_nothing_out_promises_no_evaluation(command, failure, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "Hi"}\n' * 9)
    (tmp_path / "rewards.py").write_text("def score(completions, **_): return [1.0] * len(completions)\n")
    given = ["model=toy", "engine=toy", "toy.size=4", "generations=1", "population=2", "evaluate_unperturbed=false"]
    given += [f"output_dir={tmp_path / 'run'}", "alpha=0.1", "reward_workers=0"]
    own = ("--train-dataset", tmp_path / "data.jsonl", "--reward", f"{tmp_path / 'rewards.py'}:score")
    code, output, _ = command("train", *own, *(part for item in given for part in ("--set", item)))
    assert code == 0
    assert "no prompts are held out: nothing will be evaluated" in output
    assert "seedtune samples" not in output
    for name, kind in (("samples", "held-out"), ("inspect", "recorded")):
        message = failure(name, tmp_path / "run")
        assert f"run has no {kind} answers, because it holds no prompts out. Start a new run with eval_d" in message
    assert "no held-out prompts to evaluate on. Give it some (eval_dataset" in failure("eval", tmp_path / "run")


def test_a_run_before_its_first_evaluation_is_told_to_finish_it(failure, run):
    directory.RunPaths(run).samples.unlink()
    directory.RunPaths(run).metrics.write_text("")
    for name in ("samples", "inspect"):
        assert failure(name, run).endswith(" answers yet. Let it finish its first evaluation.")


COUNTED = """
from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task
from seedtune.types import Example

def length(completions, **columns):
    return [float(len(text)) for text in completions]

def build(n=1):
    rows = tuple(Example(k, f"row {k}", {}) for k in range(n))
    return Task("counted", rows, rows, (Reward("length", length),))
"""


@pytest.mark.parametrize("what", ["toy", "run"])
def test_settings_of_a_task_in_a_relative_file_reach_it(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    Path("counted.py").write_text(COUNTED)
    settings = ["task_args.n=5"]
    if what == "run":
        own = {"task": "counted.py:build", "task_args": {"n": 5}, "eval_prompts": 0}
        ESTrainer(args=Config.create({**runs.toy(tmp_path / "run").model_dump(), **own})).train()
        settings = []
    else:
        settings += ["engine=toy"]
    for on in (["counted.py:build"], ["counted.py:build", "toy"]):
        sets = [*settings, "task=counted.py:build"] if what == "toy" and len(on) > 1 else settings
        found = evaluate(what, on=on, config=settings_of(what, sets=sets, on=on))
        assert found.subjects[0].results[0].prompts == 5


def test_what_is_left_out_of_anothers_run_on_another_task_is_said(tmp_path, caplog):
    root = tmp_path / "run"
    ESTrainer(args=runs.toy(root)).train()
    config = Config.create({**runs.toy(root).model_dump(), "eval_tasks": ["a.py:f"], "trust_remote_code": True})
    runs.write_config(config, root / "config.yaml")
    settings_of(root, on=["conciseness"], sets=["trust_remote_code=true"])
    assert "or edited since; left out: eval_tasks" in caplog.text
    with pytest.raises(ConfigError, match="contacts hosts: trust_remote_code, eval_tasks"):
        settings_of(root, on=["conciseness", "toy"])
