"""The study in benchmarks/evidence: its statistics, its data, and that a stop loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benches import evidence


def test_the_interval_of_paired_differences_is_students() -> None:
    found = evidence("statistics").paired([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert found.mean == pytest.approx(7 / 3)
    assert (found.high - found.mean) == pytest.approx(4.302653 * (7 / 3) ** 0.5 / 3**0.5, rel=1e-5)
    assert found.low == pytest.approx(2 * found.mean - found.high)
    assert found.p == pytest.approx(0.1181, abs=2e-3)


def test_a_difference_is_of_pairs_not_of_means() -> None:
    apart = evidence("statistics").paired([0.1, 0.5, 0.9], [0.0, 0.39, 0.8])
    assert 0.0 < apart.p < 0.02


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert evidence("statistics").holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evidence("statistics").holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("name", ["countdown", "products"])
def test_no_held_out_prompt_is_trained_on(name: str) -> None:
    rows = evidence("tasks").TASKS[name].data()
    assert len(rows.held_out) == 512
    assert not {row["prompt"] for row in rows.train} & {row["prompt"] for row in rows.held_out}


def test_nothing_that_the_small_models_learn_from_is_held_out() -> None:
    puzzles = evidence("puzzles")
    assert not any(puzzles.held_out(row["prompt"]) for row, _ in islice(puzzles.corpora(0)["products"], 500))


def test_right_texts_get_full_rewards_and_careless_ones_do_not() -> None:
    puzzles = evidence("puzzles")
    for make, reward in ((puzzles.products, puzzles.right_product), (puzzles.chains, puzzles.right_end)):
        for careless in (0.0, 1.0):
            drawn = list(islice(make(3, careless=careless), 200))
            columns = {name: [row[name] for row, _ in drawn] for name in drawn[0][0] if name != "prompt"}
            prompts = [row["prompt"] for row, _ in drawn]
            mean = sum(reward([text for _, text in drawn], prompts=prompts, **columns)) / len(drawn)
            assert mean == 1.0 if careless == 0.0 else mean < 0.4


def test_a_chain_is_rewarded_for_its_end_only() -> None:
    texts = ["42 79 16", "99 99 16", "42 79 17", "16", "", "42 79 16 53"]
    found = evidence("puzzles").right_end(texts, prompts=["3:05="] * 6, last=[16] * 6)
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_every_method_that_is_tuned_has_equally_many_short_runs() -> None:
    tasks, methods = evidence("tasks"), evidence("methods")
    for task in tasks.TASKS.values():
        sizes = {name: len(grid(task)) for name, grid in methods.GRIDS.items()}
        assert {name for name, size in sizes.items() if size == 1} == {methods.GIVEN_NOTHING, methods.BEST_PROMPT}
        assert set(sizes.values()) == {1, 6}


def _cell(cells: ModuleType, **more: Any) -> Any:
    given = {"purpose": "tune", "task": "countdown", "model": "llama", "method": "GRPO", "label": "a", "settings": {}}
    return cells.Cell(**{**given, "seed": 0, **more})


def _result(reward: float) -> dict[str, Any]:
    return {"points": [{"rollouts": 1, "measured": {"reward": reward}}]}


def test_settings_are_chosen_by_the_short_runs(tmp_path: Path) -> None:
    study, cells = evidence("study"), evidence("cells")
    store = study.Store(tmp_path)
    for label, reward in (("a", 0.2), ("b", 0.4), ("c", 0.3)):
        store.add(_cell(cells, label=label, settings={"learning_rate": reward}), _result(reward), tmp_path / "none")
    assert study.chosen(store, "countdown", "llama", "GRPO") == ("b", {"learning_rate": 0.4})
    assert study.chosen(store, "countdown", "gpt2", "GRPO")[0] in evidence("methods").GRIDS["GRPO"](
        evidence("tasks").TASKS["countdown"]
    )


def test_a_finished_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, cells = evidence("study"), evidence("cells")
    made: list[str] = []

    def fails_at_c(cell: Any, *_: Any) -> dict[str, Any]:
        if cell.label == "c":
            raise SystemExit("killed")
        made.append(cell.label)
        return _result(0.5)

    wanted = [_cell(cells, label=label) for label in "abc"]
    monkeypatch.setattr(study, "_process", fails_at_c)
    with pytest.raises(SystemExit, match="killed"):
        study.make(wanted, study.Store(tmp_path), 1)
    monkeypatch.setattr(study, "_process", lambda cell, *_: made.append(cell.label) or _result(0.5))
    study.make(wanted, study.Store(tmp_path), 1)
    assert made == ["a", "b", "c"]
    kept = [json.loads(line)["label"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert kept == ["a", "b", "c"]


def test_a_cell_with_other_settings_is_another_cell() -> None:
    cells = evidence("cells")
    one = _cell(cells)
    assert one.id == _cell(cells).id
    assert len({one.id, replace(one, seed=1).id, replace(one, settings={"beta": 0.1}).id}) == 3
