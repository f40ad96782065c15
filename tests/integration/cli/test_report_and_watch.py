"""``seedtune report`` and ``seedtune watch`` on a toy run."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest

import runs
from seedtune import ESTrainer
from waiting import BOUND


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "run"
    ESTrainer(args=runs.toy(root)).train()
    return root


def test_report_writes_the_page_of_a_run_again(run, command):
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    code, output, errors = command("report", run)
    assert (code, errors) == (0, "")
    assert output.startswith(f"wrote {run}/report.html, {len(page):,} bytes")
    assert (run / "report.html").read_bytes() == page


def test_report_compares_several_runs_in_one_file(run, command, tmp_path):
    file = tmp_path / "new" / "compared.html"
    code, _, errors = command("report", run, run, "-o", file)
    assert (code, errors) == (0, "")
    assert "Runs compared" in file.read_text()


def test_report_says_in_one_line_what_is_missing(run, failure, tmp_path):
    assert "-o compared.html" in failure("report", run, run)
    assert "nowhere" in failure("report", tmp_path / "nowhere")
    assert "choose another --output" in failure("report", run, "-o", run)


def test_watch_says_where_the_page_is_and_that_the_run_has_ended(run):
    process = subprocess.Popen(
        runs.command("watch", run), stdout=subprocess.PIPE, text=True, env=runs.environment(PYTHONUNBUFFERED="1")
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(2)]
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(BOUND)
    assert re.search(r"open http://127\.0\.0\.1:\d+/[\w-]+/ ", lines[0])
    assert lines[1] == "Ended after generation 5 of 5.\n"
    assert code == 0
