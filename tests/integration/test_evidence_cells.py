"""One cell of each kind in the study of benchmarks/evidence, with the published model; a result verifies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.evidence", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout


def cell(method: str, settings: dict[str, Any], share: float) -> str:
    given = {"purpose": "quick", "task": "countdown", "model": "llama", "label": "", "seed": 3}
    return json.dumps({**given, "method": method, "settings": settings, "share": share})


def test_a_run_of_es_spends_its_budget_and_counts_everything(tmp_path: Path) -> None:
    settings = {"sigma": 0.02, "alpha": 0.03}
    made = json.loads(
        call("cell", cell("seedtune, σ and α tuned", settings, 0.2), str(tmp_path / "run")).splitlines()[-1]
    )
    start, end = made["points"][0], made["points"][-1]
    assert start["generation"] == 0
    assert 3 * 1056 <= end["rollouts"] <= 0.2 * 24_576  # 33 models and 32 prompts a generation
    assert end["rollouts"] % 1056 == 0
    assert end["flops"] > end["rollouts"] * 2 * 800_000
    assert 0.1 < start["measured"]["reward"] < 0.6
    assert (tmp_path / "run" / "ledger.jsonl").exists()


def test_a_run_of_grpo_spends_the_same_budget(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    settings = {"learning_rate": 3e-4, "temperature": 1.0}
    made = json.loads(call("cell", cell("GRPO", settings, 0.021), str(tmp_path / "run")).splitlines()[-1])
    assert [point["rollouts"] for point in made["points"]] == [0, 128, 256, 512]
    assert made["points"][-1]["flops"] > 512 * 8 * 800_000
    assert made["points"][0]["measured"] != made["points"][-1]["measured"]


def test_a_published_run_verifies() -> None:
    found = call("verify")
    assert "generations replayed" in found
    assert found.strip().endswith("the same")
