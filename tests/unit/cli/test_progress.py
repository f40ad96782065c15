"""What a person sees of a replay: a bar on a terminal that leaves nothing behind, elsewhere a line now and then."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

import runs
from seedtune.cli.progress import ReplayProgress
from seedtune.run import directory, replay
from seedtune.trainer import ESTrainer


def console(**settings) -> Console:
    return Console(file=io.StringIO(), width=80, **settings)


def test_off_a_terminal_a_short_replay_prints_nothing():
    plain = console()
    with ReplayProgress(plain) as progress:
        for done in (0, 16, 32, 40):
            progress(done, 40)
    assert plain.file.getvalue() == ""


def test_off_a_terminal_a_long_replay_prints_a_line_now_and_then(monkeypatch):
    plain, clock = console(), [100.0]
    monkeypatch.setattr("seedtune.cli.progress.time.monotonic", lambda: clock[0])
    with ReplayProgress(plain) as progress:
        for done in (0, 10, 20, 30, 40):
            progress(done, 40)
            clock[0] += 6.0
    assert plain.file.getvalue().splitlines() == ["replayed 20 of 40 generations, 0:12 left"]


@pytest.mark.parametrize("goal", [0, 40])
def test_on_a_terminal_the_bar_is_gone_when_the_replay_is_done(goal):
    screen = console(force_terminal=True)
    progress = ReplayProgress(screen)
    for done in sorted({0, goal // 2, goal}):
        progress(done, goal)
    assert progress.bar.drawn is None
    assert ("replaying" in screen.file.getvalue()) == (goal > 0)


def test_on_a_terminal_an_interrupted_replay_takes_its_bar_away():
    with ReplayProgress(console(force_terminal=True)) as progress:
        progress(0, 40)
        assert progress.bar.drawn is not None
    assert progress.bar.drawn is None


def test_a_stopwatch_counts_what_was_applied_and_passes_it_on():
    progress = []
    watch = replay.Stopwatch(lambda *done: progress.append(done))
    watch(0, 9)
    watch(9, 9)
    assert (watch.updates, progress) == (9, [(0, 9), (9, 9)])
    assert watch.seconds >= 0


def test_the_bars_of_replay_and_training_do_not_meet(tmp_path):
    root = tmp_path / "run"
    ESTrainer(args=runs.toy(root)).train()
    shutil.rmtree(directory.RunPaths(root).snapshots)
    done = runs.cli("resume", root, "--generations", "6", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "replaying" in done.stdout
