"""Own data and rewards in whole runs: one command without Python, YAML, and TRL-style Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import runs
from judges import chat, serving
from models import save_family
from own_data import EXAMPLES, ONE, OWN, REWARDS, metrics, rows, sets, toy
from seedtune.config.config import Config
from seedtune.config.yaml_file import load_config
from seedtune.engines.toy.engine import Characters
from seedtune.errors import ConfigError, DataError
from seedtune.rollouts.prompts import prompt_of
from seedtune.run import directory, ledger
from seedtune.trainer import ESTrainer
from seedtune.types import UNPERTURBED, Job, Sampling


def test_one_command_trains_without_yaml_resumes_from_elsewhere_to_the_same_bits_and_evaluates(
    folder, command, monkeypatch
):
    trained, learnable = (*ONE, "--eval-dataset", "data.jsonl"), ("toy.size=16", "prompts_per_generation=20")
    done = runs.cli(*trained, *sets("generations=10", *learnable))
    assert done.returncode == 0, done.stderr
    held_out = [row["eval_reward"] for row in runs.rows(folder / "run" / "metrics.jsonl") if "eval_reward" in row]
    assert held_out[-1] > held_out[0] + 0.05

    code, _, errors = command(*trained, *sets("generations=12", "output_dir=straight", *learnable))
    assert code == 0, errors
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    code, output, errors = command("resume", folder / "run", "--generations", "12")
    assert code == 0, errors
    assert "done: 12 generations" in output
    code, output, errors = command("eval", folder / "run")
    assert code == 0, errors
    assert "custom held out, 20 prompts" in output
    assert runs.fingerprint(folder / "run") == runs.fingerprint(folder / "straight")


def test_yaml_names_data_several_rewards_and_weights(folder, command):
    settings = {
        "model": "toy",
        "train_dataset": "data.jsonl",
        "eval_dataset": {"path": "data.jsonl"},
        "reward_funcs": ["rewards.py:closeness", {"path": "rewards.brevity", "name": "short"}],
        "reward_weights": [1.0, 0.001],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    code, _, errors = command("train", "config.yaml", *sets("generations=2"))
    assert code == 0, errors
    first = metrics(folder / "run")[0]
    expected = first["rewards/closeness/mean"] + 0.001 * first["rewards/short/mean"]
    assert first["rewards/short/mean"] < -5
    scored = [first["reward"], first["reward_unperturbed"]]
    assert expected == pytest.approx((16 * scored[0] + scored[1]) / 17, abs=1e-6)


def test_every_adapter_trains_to_the_same_bits(folder, command):
    verl = [
        {"prompt": row["prompt"], "data_source": "x", "reward_model": {"ground_truth": row["target"]}} for row in rows()
    ]
    (folder / "verl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verl))
    records = []
    for name, data, reward in (
        ("trl", "data.jsonl", "rewards.py:closeness"),
        ("pair", "data.jsonl", "{path: 'rewards.py:near', adapter: pair}"),
        ("verl", "verl.jsonl", "{path: 'rewards.py:compute_score', adapter: verl}"),
    ):
        arguments = ("--model", "toy", "--train-dataset", data, "--reward", reward)
        code, _, errors = command("train", *arguments, *sets("generations=2", f"output_dir={name}"))
        assert code == 0, errors
        records.append(ledger.read(directory.RunPaths(folder / name).ledger).records)
    assert records[0] == records[1] == records[2]


def test_data_and_rewards_may_move_but_not_change(folder, command, failure):
    assert command(*ONE, *sets("generations=2"))[0] == 0
    (folder / "moved").mkdir()
    for name in ("data.jsonl", "rewards.py"):
        shutil.move(folder / name, folder / "moved" / name)
    assert "there is no data file" in failure("resume", "run", "--generations", "3")
    there = ("--set", "train_dataset=moved/data.jsonl", "--set", "reward_funcs=moved/rewards.py:closeness")
    code, _, errors = command("resume", "run", "--generations", "3", *there)
    assert code == 0, errors
    changed = ("--set", "reward_funcs=moved/rewards.py:brevity")
    assert "was started with another configuration (reward_funcs" in failure("resume", "run", *changed)
    (folder / "moved" / "data.jsonl").write_text(json.dumps(rows()[0]) + "\n")
    assert "other training data" in failure("resume", "run", "--generations", "4")


def test_a_built_in_task_can_be_evaluated_on_a_run_of_own_data(folder, command):
    assert command(*ONE, *sets("generations=1"))[0] == 0
    code, output, errors = command("eval", "run", "--task", "toy")
    assert code == 0, errors
    assert "toy held out" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "toy", "--train-dataset", "data.jsonl"], "give both reward_funcs and train_dataset"),
        (["--model", "toy", "--reward", "rewards.py:closeness"], "give both reward_funcs and train_dataset"),
        (["--train-dataset", "dta.jsonl", "--reward", "rewards.py:closeness"], "there is no data file"),
        (["--train-dataset", "data.jsonl", "--reward", "rewards.py:closness"], "Did you mean 'closeness'?"),
        (["--train-dataset", "data.jsonl", "--reward", "{path: 'rewards.py:near', adpter: pair}"], "unknown setting"),
        (["--train-dataset", "data.jsonl", "--reward", "rewards.py:near", "--set", "prompt_column=question"],
         "row 0 of the train data has no 'question' (it holds ['prompt', 'target'])"),
        (["--train-dataset", "data.jsonl", "--reward", "rewards.py:near", "--set", "task=toy"], "task=toy brings data"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(folder, failure, arguments, message):
    assert message in failure("train", *arguments, "--set", "engine=toy", "--set", "output_dir=run")
    assert not (folder / "run").exists()


def test_a_dry_run_checks_data_and_rewards(folder, command):
    code, output, errors = command(*ONE, "--dry-run", *sets())
    assert code == 0, errors
    assert "Nothing was written." in output
    assert not (folder / "run").exists()


def test_a_judge_scores_a_run_and_its_failures_are_not_rewards(folder, command, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-verysecret")

    def reply(body):
        text = body["messages"][0]["content"]
        return (400, "sk-verysecret") if text.startswith("-") else chat(text)

    with serving(reply) as server:
        judge = {"base_url": server.address, "prompt": "{completion}", "api_key_env": "JUDGE_KEY"}
        settings = {"model": "toy", "train_dataset": "data.jsonl", "reward_funcs": [{"judge": judge}]}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        code, output, errors = command("train", "config.yaml", *sets("generations=2", "population=4"))
    assert code == 0, errors
    assert server.requests[0]["headers"]["Authorization"] == "Bearer sk-verysecret"
    written = [path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()]
    assert not any(b"sk-verysecret" in data for data in (*written, output.encode(), errors.encode()))


# ------------------------------------------------------------------------- long prompts


def test_samples_and_rewards_hold_the_prompt_that_the_model_read(folder):
    seen = set()

    def watch(prompts, completions, **_):
        seen.update(prompts)
        return [0.0] * len(completions)

    data = [{"prompt": "0123456789"}, {"prompt": "short"}]
    config = toy("run", max_prompt_length=6, prompt_truncation="left")
    ESTrainer(args=config, model="toy", reward_funcs=watch, train_dataset=data, eval_dataset=data).train()
    assert seen == {"456789", "short"}
    shown = {row["prompt"] for row in runs.rows(Path("run/samples.jsonl"))}
    assert shown == seen
    with pytest.raises(DataError, match=r"prompt 0 of the training data has 10 tokens, more than 6 \(max_prompt_le"):
        ESTrainer(args=toy("other", max_prompt_length=6), model="toy", reward_funcs=watch, train_dataset=data)
    dropping = toy("other", max_prompt_length=6, prompt_truncation="drop")
    assert len(ESTrainer(args=dropping, model="toy", reward_funcs=watch, train_dataset=data).task.train) == 1


def test_a_real_models_context_is_the_limit_and_a_shortened_prompt_fills_it(tmp_path):
    base = str(save_family("llama", tmp_path / "model"))
    chat_prompt = [{"role": "user", "content": "x" * 100 + "end"}]
    given = {"reward_funcs": lambda completions: [0.0] * len(completions), "train_dataset": [{"prompt": chat_prompt}]}
    config = Config(model=base, output_dir=str(tmp_path / "run"), max_completion_length=8, generations=1)
    with pytest.raises(DataError, match=r"more than 56 \(the model's context of 64 without max_completion_length=8\)"):
        ESTrainer(args=config, **given)
    with pytest.raises(ConfigError, match="leaves no room for a prompt in the model's context of 64"):
        ESTrainer(args=config.replace(max_completion_length=64), **given)
    trainer = ESTrainer(args=config.replace(prompt_truncation="left"), **given)
    (example,) = trainer.task.train
    assert example.prompt[0]["content"].endswith("xend")
    job = Job(0, 0.0, (UNPERTURBED,), (prompt_of(trainer.config, example),), Sampling(8))
    (rollout,) = trainer.load().evaluate([job])
    assert rollout.prompt_tokens == trainer.load().tokenizer.lengths(job.prompts)[0] == 56


def test_a_run_that_a_row_has_ended_goes_on_without_the_row(folder, command, failure, monkeypatch):
    data = [*rows(3), {"prompt": "half \ud83d", "target": 0.5}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    fresh = (*ONE, *sets("eval_size=0", "prompts_per_generation=1"), "--set", "generations=4")
    assert "row 3 of the training data: prompt 3 holds half a character" in failure(*fresh, "--dry-run")
    assert not Path("run").exists()
    with monkeypatch.context() as patch:  # as versions were that did not read all rows first
        patch.setattr(Characters, "encode", lambda self, prompts: [list(map(ord, p.content)) for p in prompts])
        with pytest.raises(UnicodeEncodeError):
            ESTrainer(args=toy("run", **OWN, eval_size=0, prompts_per_generation=1, generations=4)).train()
    done = len(ledger.read(Path("run/ledger.jsonl")).records)
    assert done < 4
    assert "to leave them out, set prompt_truncation=drop" in failure("resume", "run")
    assert command("resume", "run", "--set", "prompt_truncation=drop")[0] == 0
    assert command("resume", "run", "--generations", "5")[0] == 0
    records = ledger.read(Path("run/ledger.jsonl")).records
    assert len(records) == 5
    assert all(record.prompts != (3,) for record in records)


# --------------------------------------------------------------------------- TRL's habits


def test_what_rewards_log_is_among_the_metrics_and_samples(folder):
    def shorter(completions, completion_ids, trainer_state, log_extra, log_metric):
        log_metric("step", trainer_state.global_step)
        log_extra("tokens", [len(ids) for ids in completion_ids])
        return [-float(len(ids)) for ids in completion_ids]

    data = {"train_dataset": rows(), "eval_dataset": rows(3)}
    ESTrainer(args=toy("run", generations=2, eval_steps=1), reward_funcs=shorter, **data).train()
    metrics, samples = (directory.read_lines(Path(f"run/{name}.jsonl")) for name in ("metrics", "samples"))
    assert [row["rewards/shorter/step"] for row in metrics if "reward" in row] == [0.0, 1.0]
    assert [row["eval_rewards/shorter/step"] for row in metrics if "eval_reward" in row] == [0.0, 1.0, 2.0]
    assert all(row["logged"] == {"tokens": -int(row["reward"])} for row in samples)


def test_the_models_own_tokenizer_is_taken_and_another_is_refused(tmp_path):
    import transformers as hf

    base = str(save_family("llama", tmp_path / "model"))
    given = {"model": base, "reward_funcs": len, "train_dataset": [{"prompt": "Hi"}]}
    config = Config(output_dir=str(tmp_path / "run"), max_completion_length=8)
    own = hf.AutoTokenizer.from_pretrained(base, padding_side="left")
    assert ESTrainer(args=config, processing_class=own, **given).task.train[0].prompt == "Hi"
    own.chat_template = "{{ messages }}"
    with pytest.raises(ConfigError, match="another vocabulary or chat template"):
        ESTrainer(args=config, processing_class=own, **given)
    with pytest.raises(ConfigError, match="processing_class is a str, not a tokenizer"):
        ESTrainer(args=config, processing_class="tokenizer", **given)
    with pytest.raises(ConfigError, match="processing_class is for the transformers engine"):
        ESTrainer(args=config.replace(engine="toy"), processing_class=own, **given)


# ------------------------------------------------------------------- documents and examples


@pytest.mark.parametrize("page", ["rewards-and-data.md"])
def test_every_setting_and_program_of_the_page_is_one(folder, page):
    text = (EXAMPLES.parent / "docs" / page).read_text()
    blocks = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    settings = [yaml.safe_load(block) for kind, block in blocks if kind == "yaml"]
    assert [bool(Config.create(one).reward_funcs) for one in settings] == [True] * 5
    reward, program, *_ = (block for kind, block in blocks if kind == "python")
    (folder / "rewards.py").write_text(reward + REWARDS)
    data = "".join(block for kind, block in blocks if kind == "json").replace("4", "0.4").replace("8", "0.8")
    (folder / "sums.jsonl").write_text(data.replace('"answer"', '"ground_truth": "0.1", "answer"') * 5)
    program = program.replace('model="smollm2-135m"', 'model="toy"').replace(
        "Config(", 'Config(engine="toy", generations=2, '
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=runs.environment())
    assert done.returncode == 0, done.stderr
    assert {"rewards/exact/mean", "rewards/brevity/mean"} <= set(metrics(folder / "runs/sums")[0])


def test_the_example_of_own_data_is_ready_to_run(monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    config = load_config(EXAMPLES / "sums.yaml")
    trainer = ESTrainer(args=config.replace(engine="toy", model="toy", max_prompt_length=None))
    assert (len(trainer.task.train), len(trainer.task.test)) == (39, 9)
    number, brevity = trainer.task.rewards
    assert (number.name, number.weight, brevity.name, brevity.weight) == ("last_number", 1.0, "brevity", 0.001)
    target = trainer.task.train[0].columns["answer"]
    values = [
        number.function(completions=[[{"role": "assistant", "content": text}]], answer=[target])
        for text in (f"It is {target}", "It is 99", "No idea")
    ]
    assert values == [[1.0], [0.1], [0.0]]
