"""One cell of each kind in the study of benchmarks/evidence, with the published model; a result verifies."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CELL: dict[str, Any] = {"purpose": "quick", "task": "countdown", "model": "llama", "label": "", "seed": 3}
ES: dict[str, Any] = {"method": "seedtune, σ and α tuned", "settings": {"sigma": 0.02, "alpha": 0.03}, "share": 0.13}
GRPO: dict[str, Any] = {"method": "GRPO", "settings": {"learning_rate": 3e-4, "temperature": 1.0}, "share": 0.0105}

PROGRAM = """
import json, os, sys
from pathlib import Path
from benchmarks.evidence import study
from benchmarks.evidence.cells import Cell
for name, cell in json.loads(sys.argv[1]).items():
    print(json.dumps(study._process(Cell(**cell), Path(sys.argv[2]) / name, jobs=os.cpu_count())))
"""
"""Cells in processes of their own, each with one thread, as the study runs them."""


def python(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cells' runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(runs: Path) -> dict[str, Any]:
    """The results of a cell of ES and, if TRL is installed, of one of GRPO."""
    cells = {"es": CELL | ES} | ({"grpo": CELL | GRPO} if importlib.util.find_spec("trl") else {})
    lines = python("-c", PROGRAM, json.dumps(cells), str(runs)).splitlines()
    return dict(zip(cells, map(json.loads, lines), strict=True))


def test_a_run_of_es_spends_its_budget_and_counts_everything(results: dict[str, Any], runs: Path) -> None:
    made = results["es"]
    start, end = made["points"][0], made["points"][-1]
    assert start["generation"] == 0
    assert end["rollouts"] == 3 * 1056 <= ES["share"] * 24_576  # 33 models and 32 prompts a generation
    assert end["flops"] > end["rollouts"] * 2 * 800_000
    assert 0.1 < start["measured"]["reward"] < 0.6
    assert (runs / "es" / "ledger.jsonl").exists()


def test_a_run_of_grpo_spends_the_same_budget(results: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    made = results["grpo"]
    assert [point["rollouts"] for point in made["points"]] == [0, 128, 256]
    assert made["points"][-1]["flops"] > 256 * 8 * 800_000
    assert made["points"][0]["measured"] != made["points"][-1]["measured"]


def test_a_published_run_verifies() -> None:
    """The one with the shortest ledger; the command takes any."""
    ledgers = (ROOT / "benchmarks/results/evidence/runs").glob("*.jsonl.gz")
    shortest = min(ledgers, key=lambda ledger: ledger.stat().st_size).name.removesuffix(".jsonl.gz")
    found = python("-m", "benchmarks.evidence", "verify", shortest)
    assert "generations replayed" in found
    assert found.strip().endswith("the same")
