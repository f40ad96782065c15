"""Where a reward function runs, and what its calls hold."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

import hostile
import runs
from seedtune.rewards.base import Reward
from seedtune.rewards.execution.placement import Placement, place_of
from seedtune.rewards.scorer import batches
from seedtune.rewards.sources.user_code import MODULES
from seedtune.tasks.builtin.conciseness import length_error

PROMPTS = [0, 0, 1, 1, 0, 0, 1, 1]
"""Two members, two prompts, two samples."""


def placed(function, workers: int = 8, **more) -> Placement:
    return place_of(Reward("r", function, **more), workers)


def test_a_function_of_a_module_goes_to_a_worker():
    assert placed(hostile.length) == Placement("worker", "hostile:length")


def test_a_source_is_believed():
    assert placed(lambda completions: [], source="file.py:function") == Placement("worker", "file.py:function")


def test_plain_functions_of_ours_stay_in_the_main_thread():
    assert placed(length_error) == placed(length_error, 0) == Placement("here")
    assert placed(length_error, source="seedtune.tasks.builtin.conciseness.length_error").where == "worker"


def test_without_workers_everything_else_is_in_threads_without_a_note():
    for more in ({}, {"source": "file.py:function"}, {"inline": True}):
        assert placed(hostile.length, 0, **more) == placed(lambda completions: [], 0, **more) == Placement("thread")


def test_what_asks_to_stay_in_this_process_does():
    assert placed(hostile.length, inline=True) == Placement("thread")
    assert placed(length_error, inline=True, source="file.py:function") == Placement("thread")


class Judge:
    def __call__(self, completions):
        return []

    def method(self, completions):
        return []


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (lambda completions: [], "is a lambda or a function inside another"),
        (Judge(), "is an object of this process"),
        (Judge().method, "is an object of this process"),
        (functools.partial(hostile.length), "is an object of this process"),
        (functools.partial(length_error), "is an object of this process"),
        (functools.wraps(hostile.length)(lambda completions: []), "is a lambda or a function inside another"),
    ],
    ids=["lambda", "callable", "method", "partial", "partial of ours", "another of its name"],
)
def test_what_only_this_process_has_is_in_a_thread_with_a_note(function, note):
    place = placed(function)
    assert (place.where, place.source) == ("thread", "")
    assert place.note.startswith(note)
    assert "file.py:function" in place.note


SCRIPT = """
from seedtune.rewards.execution.placement import place_of
from seedtune.rewards.execution.call import RewardCall
from seedtune.rewards.execution.process import ProcessWorker
from seedtune.rewards.base import Reward

def reward(completions):
    return [len(__name__) for _ in completions]

def main():
    place = place_of(Reward("r", reward), 8)
    print(place.where, place.note)
    if place.where == "worker":
        worker = ProcessWorker(0)
        print(worker.call(RewardCall(reward, place.source, {"completions": ["a"]}, 1, 10.0)).values)
        worker.close()
"""


def output_of(tmp_path, end: str) -> str:
    (tmp_path / "script.py").write_text(SCRIPT + end)
    command = [sys.executable, tmp_path / "script.py"]
    return subprocess.run(command, capture_output=True, text=True, env=runs.environment(), check=True).stdout


def test_a_function_of_a_guarded_script_goes_to_a_worker_that_runs_no_more_than_importing_it(tmp_path):
    name = len(f"{MODULES}123456789012.script_123456789012")
    assert output_of(tmp_path, 'if __name__ == "__main__":\n    main()\n') == f"worker None\n[{name}.0]\n"


def test_a_function_of_an_unguarded_script_stays_so_that_the_script_does_not_run_again(tmp_path):
    assert output_of(tmp_path, "main()\n").startswith('thread is of a script without `if __name__ == "__main__":`')


@pytest.mark.parametrize(
    ("batch", "calls"),
    [
        ("sample", [(place,) for place in range(8)]),
        ("prompt", [(0, 1, 4, 5), (2, 3, 6, 7)]),
        ("all", [tuple(range(8))]),
    ],
)
def test_calls_hold_what_was_asked_for_in_order(batch, calls):
    assert batches(batch, PROMPTS) == calls
    assert batches(batch, []) == []


def test_chunks_are_neighbours():
    assert [len(batch) for batch in batches("sample", [0] * 67, 32)] == [32, 32, 3]
