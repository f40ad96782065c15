"""The model that a run hands out: the best one that it evaluated, by everything that gives a model away."""

from __future__ import annotations

import pytest
from safetensors.numpy import load_file

import runs
from seedtune import apply_pack, evaluate, export_run, pack_run, verify_run
from seedtune.errors import LedgerError
from seedtune.run import directory, ledger
from seedtune.tasks.builtin.toy import closeness
from seedtune.trainer import ESTrainer

ROWS = [{"prompt": f"number {index}", "answer": 0.1 * index} for index in range(8)]


def falling(completions, answer, trainer_state, **_):
    """Good at first, and a little worse in every later generation, whatever the answers are."""
    return [value - trainer_state.global_step for value in closeness(completions, answer)]


def trainer(root, **settings) -> ESTrainer:
    config = runs.toy(root, **{"alpha": None, "eval_steps": 0, "rollback_on_fall": "yes", **settings})
    held_out = None if settings.get("eval_size") == 0.0 else ROWS
    return ESTrainer(args=config, reward_funcs=falling, train_dataset=ROWS, eval_dataset=held_out)


def weights(folder):
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


def contents(root) -> ledger.Contents:
    return ledger.read(directory.RunPaths(root).ledger)


@pytest.fixture(params=[{}, {"eval_size": 0.0}], ids=["held-out", "training-prompts"])
def root(request, tmp_path):
    trainer(tmp_path / "run", **request.param).train()
    return tmp_path / "run"


def test_a_run_that_only_did_harm_hands_out_its_base_model(root, tmp_path):
    assert contents(root).chosen == 0
    assert export_run(root, tmp_path / "default").generation == 0
    assert export_run(root, tmp_path / "last", generation="last").generation == 5
    export_run(root, tmp_path / "base", generation=0)
    assert weights(tmp_path / "default") == weights(tmp_path / "base") != weights(tmp_path / "last")
    verify_run(root)


def test_a_pack_follows_the_choice(root, tmp_path):
    pack_run(root, tmp_path / "file.pack")
    apply_pack(tmp_path / "file.pack", tmp_path / "applied", base="toy")
    export_run(root, tmp_path / "base", generation=0)
    assert weights(tmp_path / "applied") == weights(tmp_path / "base")


def test_the_trainer_saves_and_reports_the_chosen_model(tmp_path):
    run = trainer(tmp_path / "run")
    returned = run.train()
    assert returned["generation"] == 0
    run.save_model(tmp_path / "saved")
    run.save_model(tmp_path / "last", generation="last")
    export_run(tmp_path / "run", tmp_path / "base", generation=0)
    assert weights(tmp_path / "saved") == weights(tmp_path / "base") != weights(tmp_path / "last")
    assert run.generation == 5


def test_the_choice_is_said(root, tmp_path, caplog):
    export_run(root, tmp_path / "default")
    assert "the model after generation 0 of 5 is taken, because none was clearly better" in caplog.text
    assert "'last' gives the last one" in caplog.text


def test_eval_measures_the_chosen_model_by_default(tmp_path):
    run = runs.toy(tmp_path / "run", alpha=None, eval_steps=0, sigma=5.0)
    ESTrainer(args=run).train()
    chosen = contents(tmp_path / "run").chosen
    found = evaluate(tmp_path / "run")
    assert [subject.generation for subject in found.subjects] == [chosen]


def test_a_run_with_an_alpha_of_its_own_hands_out_the_last_model(tmp_path):
    trainer(tmp_path / "run", alpha=0.2, rollback_on_fall="auto").train()
    assert contents(tmp_path / "run").chosen == 5
    assert export_run(tmp_path / "run", tmp_path / "model").generation == 5


def test_a_resumed_run_chooses_again(tmp_path):
    trainer(tmp_path / "run").train()
    trainer(tmp_path / "run", generations=7).train(resume_from_checkpoint=True)
    assert contents(tmp_path / "run").ends == {5: 0, 7: 0}
    trainer(tmp_path / "run", generations=7).train(resume_from_checkpoint=True)
    assert contents(tmp_path / "run").ends == {5: 0, 7: 0}


@pytest.mark.parametrize("count", [3, 8])
def test_a_run_that_is_resumed_with_other_held_out_prompts_goes_on(tmp_path, count):
    trainer(tmp_path / "run").train()
    run = trainer(tmp_path / "run", generations=7)
    other = ESTrainer(args=run.config, reward_funcs=falling, train_dataset=ROWS, eval_dataset=ROWS[:count])
    other.train(resume_from_checkpoint=True)
    assert contents(tmp_path / "run").ends.keys() == {5, 7}
    verify_run(tmp_path / "run")


def test_a_choice_of_a_generation_that_is_not_there_is_refused(root):
    def change(data):
        if "chosen" in data:
            data["chosen"] = 9

    runs.edit_ledger(root, change)
    with pytest.raises(LedgerError, match="generation 9 is chosen after 5"):
        contents(root)


def test_lost_samples_are_answered_again(tmp_path):
    trainer(tmp_path / "run", generations=3).train()
    directory.RunPaths(tmp_path / "run").samples.unlink()
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert contents(tmp_path / "run").generations == 5
