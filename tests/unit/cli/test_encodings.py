"""Terminals and logs as they are: without UTF-8, closed, or gone."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

import runs
from seedtune.cli.eval_and_samples import _hand_out
from seedtune.run import directory
from waiting import BOUND, wait_until

CODE = r"""
from seedtune.cli.console import accept_any_text, error_console, say, say_table
accept_any_text()
say("\u03c3 \U0001f600 \udc80")
say_table(["\u03b1"], [["\u03c3"]], title="\u2192")
error_console().print("\u2026")
"""


def run(**options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", CODE], timeout=BOUND, capture_output=True, check=True, **options)


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8:strict"},
    ],
    ids=str,
)
def test_text_that_the_output_cannot_encode_is_printed_as_escapes(locale):
    done = run(env=runs.environment(**locale))
    first, *_ = done.stdout.splitlines()
    assert first.endswith(rb" \udc80")
    assert b"utf-8" in locale.get("PYTHONIOENCODING", "").encode() or first == rb"\u03c3 \U0001f600 \udc80"


@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_a_closed_output_takes_anything(closed):
    run(env=runs.environment(), preexec_fn=lambda: list(map(os.close, closed)))


def test_an_evaluation_as_json_is_ascii(capsys):
    """So it is JSON in any encoding."""
    _hand_out(SimpleNamespace(to_json=lambda: {"σ": "😀"}), None, to_stdout=True)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert output.isascii()
    assert json.loads(output) == {"σ": "😀"}


def drain(terminal: int) -> None:
    """Read what a process has written for a while, so that it need not wait for a reader."""
    time.sleep(0.02)
    with suppress(OSError):  # nothing written yet
        os.read(terminal, 1 << 16)


def test_a_terminal_that_closes_stops_the_run_like_an_interrupt(tmp_path):
    root = tmp_path / "run"
    config = runs.write_config(runs.toy(root, generations=60, toy={"size": 4, "delay": 0.1}), tmp_path / "config.yaml")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        runs.command("train", config),
        env=runs.environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        os.set_blocking(ours, False)
        assert wait_until(lambda: directory.RunPaths(root).metrics.exists(), process=process, turn=lambda: drain(ours))
        os.close(ours)  # what the process writes fails from now on
        process.send_signal(signal.SIGHUP)
        assert process.wait(BOUND) == 130
