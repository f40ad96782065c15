"""A run's tokens, memory and time before it is begun."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

import models
import runs
import seedtune
from seedtune import engines
from seedtune.cli.probe_and_plan import show_forecast
from seedtune.engines.model_sizes import anatomy_of
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.errors import ConfigError, ModelError, RunError
from seedtune.planning.accelerators import MACHINES
from seedtune.planning.cost_model import Speed, Workload
from seedtune.planning.plan import measured_here, plan, plan_config, sides
from seedtune.rewards.base import Reward
from seedtune.rollouts.prepare import prepare
from seedtune.tasks.base import Task
from seedtune.types import Example

TEXTS = ("one", "two and", "three", "four", "fives")
TASK = Task("own", tuple(Example(i, t, {}) for i, t in enumerate(TEXTS)), (), (Reward("r", len),))


def planned(folder, **settings) -> seedtune.ESConfig:
    small = {"population": 8, "prompts_per_generation": 4, "max_completion_length": 20, "generations": 10}
    return seedtune.ESConfig(model=str(folder), **{**small, "transformers": {"device": "cpu"}, **settings})


@pytest.fixture
def folder(tmp_path):
    return models.save_family("llama", tmp_path / "model")


def test_a_generation_is_counted(folder):
    found = plan_config(planned(folder), share=0.5, task=TASK)
    work = found.workload
    assert (work.members, work.prompts, work.rollouts) == (9, 4, 36)
    assert work.prompt_tokens == pytest.approx(sum(map(len, TEXTS)) / 5)
    assert (work.longest, work.new_tokens, work.slots, work.counted) == (7, 10.0, 36, True)
    assert found.tokens == pytest.approx(36 * (work.prompt_tokens + 10))
    assert (work.steps, work.row_steps) == (19, 36 * 9)
    assert found.durations == ()


@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2", "qwen3", "phi3", "mixtral", "opt", "gpt-neox"])
@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian"])
def test_a_model_without_weights_has_the_sizes_of_the_loaded_one(tmp_path, family, perturbation):
    folder = models.save_family(family, tmp_path / "model")
    config = planned(folder, perturbation=perturbation)
    found = anatomy_of(config)
    engine = models.load_engine(folder, noise={"perturbation": perturbation})
    coverage = engine.perturbation.coverage
    assert found.parameters == coverage.total
    assert (found.linear if perturbation == "lowrank" else found.trainable) == coverage.perturbed
    list(engine.evaluate([models.job(models.text_prompts("ab"))]))
    kept = [(layer.keys, layer.values) for layer in engine.attention.cache.layers]
    assert found.cached == sum(k.shape[1] * k.shape[2] + v.shape[1] * v.shape[3] for k, v in kept)
    assert (found.vocabulary, found.itemsize) == (models.VOCABULARY, 4)
    engine.close()


def test_weights_and_tokenizer_are_not_needed(folder, monkeypatch):
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    found = plan_config(planned(folder), devices=["8xh100", "cpu"], task=TASK)
    assert [duration.device for duration in found.durations] == ["8xh100"]
    assert any(note.startswith("cpu was not measured: cannot load the model") for note in found.notes)
    assert any("four characters a token" in note for note in found.notes)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="there is no model folder"):
        plan_config(planned(folder), task=TASK)


def test_memory_follows_its_formula(folder):
    config = planned(folder, rank=2)
    found = plan_config(config, task=TASK)
    body, (low, bare, full, own, shared, _) = found.anatomy, found.memory
    assert [m.weights for m in found.memory] == [4 * body.parameters] * 6
    assert (low.current_weights, bare.current_weights) == (4 * body.linear, 0)
    assert (full.current_weights, own.current_weights) == (4 * body.trainable, 4 * body.trainable)
    assert (low.factors, full.factors) == (4 * 2 * body.factors * 4, 0)
    assert shared.factors == 4 * (4 * body.factors + body.linear)
    assert shared.current_weights == low.current_weights
    assert low.cache == 36 * (7 + 20) * body.cached * 4
    assert full.cache == 4 * (7 + 20) * body.cached * 4
    assert low.total == low.weights + low.current_weights + low.cache + low.factors + 36 * models.VOCABULARY * 4


def test_gaussian_plans_the_same_memory_for_every_mode_as_lowrank_does(folder):
    low, full = (plan_config(planned(folder, perturbation=p), task=TASK).memory for p in ("lowrank", "gaussian"))
    assert low == full


def test_the_factors_of_a_pair_are_those_the_engine_makes(folder):
    engine = models.load_engine(folder)
    members = (seedtune.types.Member(0, 0, 1),)
    list(engine.evaluate([models.job(models.text_prompts("ab"), members=members)]))
    made = sum(group.noise.a.numel() + group.noise.b.numel() for group in engine.perturbation.groups)
    assert anatomy_of(planned(folder)).factors == made
    engine.close()


def test_an_accelerator_is_a_formula_of_datasheet_figures(folder):
    one, four = plan_config(planned(folder), devices=["a100", "4xa100"], share=1.0, task=TASK).durations
    machine = MACHINES["a100"]
    assert one.decode == pytest.approx(19 * 2 * machine.launch)
    assert "19 steps of 1.6 ms = max((W " in one.basis
    assert one.fits
    assert four.prefill == pytest.approx(one.prefill / 3)


@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian"])
def test_it_says_whether_a_members_own_rows_fill_the_device(folder, perturbation):
    """They do where products, not weights or launches, take the time: here on a device of few FLOP/s."""
    config = planned(folder, perturbation=perturbation)
    found = plan_config(config, devices=["h100"], share=1.0, task=TASK)
    (note,) = (note for note in found.notes if note.startswith("h100"))
    assert "0.0304 s in one batch (lowrank), 0.274 s member by member (gaussian): " in note
    assert note.endswith("one batch is 9.0 times as fast")  # nine members, and launches take all the time
    slow = replace(MACHINES["h100"], flops=1e6)
    assert sides(slow, found.anatomy, found.workload, config).endswith("the rows of one member fill the device")


def test_a_prepared_run_is_planned_as_it_is_and_its_prompts_are_tokenised_once(folder, monkeypatch):
    made, tokenizer = [], engines.tokenizer
    monkeypatch.setattr(engines, "tokenizer", lambda config: made.append(config) or tokenizer(config))
    run = prepare(planned(folder), task=TASK, fits=False)
    found = plan(run, ["h100", "4xa100"], measured=None, share=0.5)
    assert len(made) == 1
    again = plan_config(planned(folder), devices=["h100", "4xa100"], share=0.5, task=TASK)
    assert found == again


def test_this_machine_is_measured_and_the_model_is_not_trained(folder, monkeypatch):
    asked, prints = [], []
    evaluate, close = TransformersEngine.evaluate, TransformersEngine.close
    monkeypatch.setattr(TransformersEngine, "evaluate", lambda s, jobs: evaluate(s, asked.extend(jobs) or asked[-1:]))
    monkeypatch.setattr(TransformersEngine, "close", lambda s: (prints.append(s._loaded), close(s))[1])
    (found,) = plan_config(planned(folder), devices=["cpu"], task=TASK).durations
    assert found.seconds > 0
    assert found.prefill > 0
    assert found.basis.endswith("measured now")
    assert [len(job.members) for job in asked] == [1, 3, 9]
    assert asked[0].members[0] not in asked[2].members, "the first is a rehearsal: its weights must be made anew"
    assert all(member.generation > 2**31 for job in asked for member in job.members)
    assert prints[-1] is True


def test_gaussian_members_are_measured_one_by_one(folder):
    (found,) = plan_config(planned(folder, perturbation="gaussian"), devices=["cpu"], task=TASK).durations
    assert found.perturb > 0


def test_steps_and_rows_are_charged_apart():
    work = Workload(10, 4, 5.0, 8, 11.0, 20, 20, 4, alone=False, counted=True)
    assert work.steps == 20 * 11 / 20 + 19
    found = measured_here(Speed(prompt_token=0.1, step=1.0, row=0.5, perturb=3.0, update=2.0), work)
    assert (found.prefill, found.decode) == (pytest.approx(20.0), pytest.approx(30.0 + 400 * 0.5))
    assert found.seconds == pytest.approx(20.0 + 230.0 + 3.0 + 2.0)


def test_a_run_gives_its_pace_and_lengths(folder, tmp_path):
    run = tmp_path / "run"
    seedtune.ESTrainer(args=runs.toy(run, max_completion_length=20)).train()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "step_time" in row]
    found = plan_config(planned(folder), devices=["h100"], measured=run, task=TASK)
    pace = sum(r["step_time"] for r in rows) / sum(r["num_tokens"] for r in rows)
    assert [duration.device for duration in found.durations] == ["cpu", "h100"]
    assert found.durations[0].seconds == pytest.approx(pace * found.tokens)
    assert found.workload.new_tokens == pytest.approx(sum(r["completions/mean_length"] for r in rows) / len(rows))


def test_a_run_without_a_generation_has_no_pace(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    runs.write_config(runs.toy(run), run / "config.yaml")
    with pytest.raises(RunError, match="has no measured generation yet"):
        plan_config(planned(folder), measured=run, task=TASK)


def test_what_cannot_be_planned_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        plan_config(planned(folder), devices=["h1000"], task=TASK)
    with pytest.raises(ConfigError, match="plan forecasts language models, not engine='toy'"):
        plan_config(runs.toy(tmp_path))
    with pytest.raises(ConfigError, match=r"--share 1\.5 must be above 0 and at most 1"):
        plan_config(planned(folder), share=1.5, task=TASK)


def test_a_plan_for_vllm_counts_its_rows_its_precision_and_no_launches(folder):
    vllm = {"engine": "vllm", "vllm": {"max_num_seqs": 16, "max_loras": 3}, "dtype": "bfloat16"}
    found = plan_config(planned(folder, **vllm), devices=["cpu", "h100"], task=TASK)
    assert (found.workload.slots, found.anatomy.dtype) == (12, "bfloat16")
    assert [duration.device for duration in found.durations] == ["h100"]
    assert "at least 0 launched layers" in found.durations[0].basis
    assert any("Give a run with --measured" in note for note in found.notes)
    alone = plan_config(planned(folder, **vllm, perturbation="gaussian"), task=TASK)
    assert alone.workload.slots == 4
    theirs = plan_config(planned(folder), devices=["h100"], task=TASK)
    assert found.durations[0].decode < theirs.durations[0].decode


def test_half_precision_halves_what_is_read(tmp_path):
    folder = models.save_family("llama", tmp_path / "model", dtype=torch.bfloat16)
    found = plan_config(planned(folder), task=TASK)
    assert (found.anatomy.dtype, found.anatomy.itemsize) == ("bfloat16", 2)
    assert found.memory[2].packed == 2 * found.anatomy.linear
    wide = plan_config(planned(folder, dtype="float32"), task=TASK)
    assert wide.anatomy.itemsize == 4
    assert wide.memory[2].packed == 4 * wide.anatomy.linear


def test_the_command_shows_every_part(command, folder, tmp_path):
    path = runs.write_config(planned(folder, task="conciseness"), tmp_path / "config.yaml")
    code, output, _ = command("plan", path, "--devices", "h100,8xh200")
    assert code == 0
    for part in (
        "9 members × 4 prompts = 36 rollouts",
        "lowrank, weights_dtype float32 (configured)",
        "8xh200",
        "--share",
    ):
        assert part in output


def test_generations_of_two_sizes_are_planned_at_the_largest_and_counted_as_they_are(folder, capsys):
    probes = {"lookahead": {"radius": 0.5, "probes": 2}}
    found = plan_config(planned(folder, **probes), devices=["h100"], share=0.5, task=TASK)
    assert found.workload.members == 9
    assert found.rollouts == 5 * (3 + 9) * 4
    assert found.full == pytest.approx(5 * (3 + 9) / 9)
    assert any("2 to 8 members" in note for note in found.notes)
    show_forecast(found)
    assert f"{found.rollouts:,} rollouts" in capsys.readouterr().out
