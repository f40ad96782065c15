"""The command line in this process, and a finished toy run to try it on."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import pytest

import runs
from seedtune import cli as seedtune_cli
from seedtune.trainer import ESTrainer


@pytest.fixture
def command(capsys, monkeypatch):
    """``command(*arguments)`` → (exit code, output, errors), in this process and without a terminal."""

    monkeypatch.setattr(logging.getLogger("seedtune"), "handlers", [])

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seedtune", *map(str, arguments)])
        capsys.readouterr()  # what was printed before the command
        old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            with pytest.raises(SystemExit) as ended:
                seedtune_cli.main()
        finally:
            for number, answer in old.items():
                signal.signal(number, answer)
        output, errors = capsys.readouterr()
        return ended.value.code or 0, output, errors

    return call


@pytest.fixture
def failure(command):
    """``failure(*arguments)`` → the one line that a command prints before it exits with 1."""

    def call(*arguments: str | Path) -> str:
        code, _, errors = command(*arguments)
        return runs.only_line(code, errors)

    return call


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run."""
    root = tmp_path / "run"
    ESTrainer(args=runs.toy(root)).train()
    return root
