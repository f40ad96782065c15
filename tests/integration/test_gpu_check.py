"""scripts/gpu-check, without a GPU: every step of a dry run says something, and what fails is said to fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, with steps of the test's own."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command = importlib.import_module("benchmarks.gpu_check.__main__")

    def run(folder: Path, *options: str, **steps: Callable[[Any], None]) -> int:
        for name, step in steps.items():
            monkeypatch.setitem(sys.modules, f"benchmarks.gpu_check.{name}", SimpleNamespace(run=step, __doc__=name))
        return command.main(["--dry", "--out", str(folder), "--only", ",".join(steps), *options])

    return run


def steps_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu-check.json").read_text())["steps"]
    return found


@pytest.mark.slow
def test_every_step_of_a_dry_run_has_figures_and_none_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu-check", "--dry", "--budget", "3600", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["env", "ceilings", "bits", "kernels", "parity", "engine", "products", "attention", "suite"]
    steps = steps_of(tmp_path)
    assert list(steps) == names
    assert {step["state"] for step in steps.values()} == {"done"}
    assert all(step["figures"] for step in steps.values())
    assert all(name in done.stdout for step in steps.values() for name in step["figures"])


def test_a_step_that_fails_is_noted_and_the_next_one_runs(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(check: Any) -> None:
        check.say("before", 1.0)
        assert steps_of(tmp_path)["bits"]["figures"]["before"]["value"] == 1.0  # a killed run has told it
        raise ValueError("no such kernel")

    def fine(check: Any) -> None:
        check.say("after", "equal")

    assert main(tmp_path, bits=failing, parity=fine) == 1
    steps = steps_of(tmp_path)
    assert steps["bits"]["state"] == "failed: ValueError: no such kernel"
    assert steps["parity"] == {**steps["parity"], "state": "done"}
    assert "2 figures, 1 wrong: bits" in capsys.readouterr().out


def test_a_wrong_figure_and_a_failed_attempt_give_the_status_1(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def different(check: Any) -> None:
        check.say("perturb", "different", wrong=True)
        with check.attempt("needed"):
            raise ValueError("refused")
        with check.attempt("not there", needed=False):
            raise ValueError("refused")

    assert main(tmp_path, bits=different) == 1
    assert "3 figures, 2 wrong: perturb, needed" in capsys.readouterr().out
    assert steps_of(tmp_path)["bits"]["figures"]["not there"]["value"] == "no"


def test_without_time_left_steps_are_skipped(main: Callable[..., int], tmp_path: Path) -> None:
    assert main(tmp_path, "--budget", "-1", bits=pytest.fail) == 0
    assert steps_of(tmp_path)["bits"]["state"] == "skipped: no time left"


def test_without_what_the_steps_need_none_begins(main: Callable[..., int], tmp_path: Path) -> None:
    def incomplete(check: Any) -> None:
        raise RuntimeError("torch sees no CUDA device")

    assert main(tmp_path, env=incomplete, bits=pytest.fail) == 1
    assert list(steps_of(tmp_path)) == ["env"]


def test_an_unknown_step_is_refused_with_those_that_there_are(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(tmp_path, bit=pytest.fail)
    assert "no steps bit; there are env, ceilings, bits" in capsys.readouterr().err
