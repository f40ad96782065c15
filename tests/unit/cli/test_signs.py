"""Whatever takes long is said while it lasts, with an estimate where there is one."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from rich.console import Console

import runs
from seedtune import activities
from seedtune.activities import Activity, doing
from seedtune.cli.signs import SignsOfLife, line
from seedtune.numerics.machine.caching import njit
from seedtune.trainer import ESTrainer


def signs(*, terminal: bool = False) -> tuple[SignsOfLife, io.StringIO]:
    file = io.StringIO()
    watch = SignsOfLife(Console(file=file, width=200, force_terminal=terminal))
    watch._starting = ()
    return watch, file


def test_a_slow_start_is_not_silent_either():
    file = io.StringIO()
    watch = SignsOfLife(Console(file=file, width=200))
    began = watch._starting[0].began
    for second in range(9):
        watch.look(began + second)
    assert file.getvalue() == "  … starting, 0:05 so far\n"
    with doing("converting") as whole:
        whole.began = began + 9
        for second in (9, 10, 11, 12, 13):
            watch.look(began + second)
    assert file.getvalue().splitlines()[1:] == ["  … converting, 0:01 so far"]


def test_something_that_takes_long_is_never_silent_for_more_than_five_seconds():
    watch, file = signs()
    with doing("held-out prompts") as whole:
        said, began = [], whole.began
        for step in range(240):
            before = file.tell()
            watch.look(began + step * watch.PAUSE)
            if file.tell() > before:
                said.append(step * watch.PAUSE)
    assert len(said) == 12
    assert max(later - earlier for earlier, later in zip([0.0, *said], said, strict=False)) <= 5.0


@pytest.mark.parametrize(("terminal", "fewest", "most"), [(False, 9, 11), (True, 60, 61)])
def test_later_there_are_fewer_lines_in_a_log_but_not_on_a_terminal(terminal, fewest, most):
    watch, file = signs(terminal=terminal)
    with doing("held-out prompts") as whole:
        for second in range(61, 361):
            watch.look(whole.began + second)
    assert fewest <= file.getvalue().count("\n") <= most


def test_what_is_short_is_not_said_and_each_new_thing_has_its_own_time():
    watch, file = signs()
    for _ in range(3):
        with doing("a generation") as whole:
            for second in range(5):
                watch.look(whole.began + second)
        watch.look(time.monotonic())
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            Activity("completion", goal=96, done=32, began=20.0),
            "held-out prompts: completion 32 of 96, about 0:40 left",
        ),
        (Activity("completion", goal=96, began=30.0), "held-out prompts: completion 0 of 96, 0:30 so far"),
        (Activity("converting", about=30.0, began=20.0), "held-out prompts: converting, about 0:10 left"),
        (Activity("converting", about=10.0, began=20.0), "held-out prompts: converting, 0:30 so far"),
    ],
)
def test_a_line_says_how_far_it_is_and_what_is_left(part, text):
    assert line((Activity("held-out prompts", began=10.0), part), 40.0) == f"  … {text}"


def test_the_thread_says_what_the_process_is_busy_with(monkeypatch):
    monkeypatch.setattr(SignsOfLife, "EVERY", 0.2)
    monkeypatch.setattr(SignsOfLife, "PAUSE", 0.01)
    watch, file = signs()
    with watch, doing("loading the model"):
        deadline = time.monotonic() + 60
        while "loading the model" not in file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not watch._thread.is_alive()


def test_a_compilation_is_an_activity_with_a_number():
    @njit(nogil=True)
    def twice(x):
        return x + x

    seen = []
    begin = activities.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activities, "begin", lambda activity: (seen.append(activity.what), begin(activity)))
        twice(np.float32(1.0))
        twice(np.float32(2.0))
    assert len(seen) == 1
    assert seen[0].startswith("compiling for this processor, once: function ")
    assert activities.current() == ()


def test_a_run_is_busy_with_its_evaluations_and_generations(tmp_path):
    seen = []
    begin = activities.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activities, "begin", lambda activity: (seen.append(activity), begin(activity)))
        ESTrainer(args=runs.toy(tmp_path / "run", generations=2)).train()
    names = [activity.what for activity in seen if not activity.what.startswith("compiling")]
    assert names[0] == "loading the model"
    assert names[1:3] == ["held-out prompts", "completion"]
    assert names.count("generation 2") == 1
    counted = [activity for activity in seen if activity.what == "completion"]
    assert all(activity.goal > 0 and activity.done == activity.goal for activity in counted)
    assert activities.current() == ()
