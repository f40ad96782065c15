"""What benchmark pages say beside a reward on length: how many answers are empty; and the demo's page."""

from __future__ import annotations

import json

import runs
from benches import load
from seedtune.trainer import ESTrainer

demo = load("demo")
strategies = load("strategies")
load("untuned_tasks")  # which it imports
untuned = load("untuned")


def test_spoilt_answers_stand_by_seed_and_unrecorded_ones_are_said_to_be_unknown():
    assert strategies.spoilt([[[0, -9.0], [9, -1.0]], [[0, -9.0, 0.0], [9, -1.0, 0.974]]]) == "? 97%"


def test_the_table_of_variants_has_the_spoilt_share_at_the_end():
    curve = [[0, -88.0, 0.0], [400, -40.0, 0.1], [800, -9.0, 0.5]]
    made = [{"task": "conciseness", "label": label, "points": curve} for label in ("fixed, α = 6σ", "auto")]
    lines = strategies.variants_table(made, "conciseness").splitlines()
    (head,) = [line for line in lines if strategies.SPOILT in line]
    rows = [line for line in lines if line.endswith(" 50% |")]
    assert len(rows) == 2
    assert all(row.count("|") == head.count("|") for row in rows)


def test_the_page_of_untuned_runs_counts_those_that_did_harm():
    task = {"task": "brief", "sigma": 0.01, "start": 0.5}
    gains = [
        ("auto", "auto", 0.04, -0.05),
        ("auto", "auto", -0.015, 0.01),
        ("sweep", "a", 0.02, 0.02),
        ("sweep", "a", 0.0, 0.0),
        ("sweep", "b", 0.3, 0.3),
        ("sweep", "c", -0.2, -0.2),
    ]
    made = [
        {
            **task,
            "study": study,
            "label": label,
            "handed": {"gain": gain, "error": 0.01, "spread": 0.02},
            "last": {"gain": last, "error": 0.01, "spread": 0.02},
        }
        for study, label, gain, last in gains
    ]
    text = untuned.page(made)
    row = "| brief | 0.500 | +0.040 ± 0.010; -0.015 ± 0.010 | -0.050; +0.010 | 0.01, 0.01 "
    assert row + "| a | +0.020; +0.000 |" in text, "a pair of one seed does not count as the best"
    assert "best pairs: 1.25 handed out, -2.00 last models." in text
    assert "own evaluation: 0 handed out, 1 last models; " in text
    assert text.endswith("paired difference: 1 and 1.")


def test_the_demo_page_has_every_figure_of_every_run_and_its_answers(tmp_path):
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"n {i}|"}]}) + "\n" for i in range(4)))
    reward = tmp_path / "short.py"
    reward.write_text("def short(completions):\n    return [-float(len(str(one))) for one in completions]\n")
    data = {
        "task": "custom",
        "train_dataset": str(chat),
        "eval_dataset": str(chat),
        "reward_funcs": [f"{reward}:short"],
    }
    config = runs.toy(tmp_path / "run", generations=2, seed=7).replace(**data)
    ESTrainer(args=config).train()
    run = {"label": "a processor", "sets": ["x=1"], **demo.figures(tmp_path / "run")}
    text = demo.page([run], "Said by hand.")
    assert "## a processor" in text
    assert "Said by hand." in text
    assert "| 7 | empty answers | 0.0 % [0.0 %, 0.0 %] |" in text
    assert f"{run['rollouts']:,} rollouts" in text
    assert run["rollouts"] == 2 * 5 * 3
    assert "alarms in the last generation: " in text
    assert text.count("| n ") == len(run["answers"]) == 3
    assert "| n 0\\| | " in text
