"""The status of a run's workers: written by its process, shown by another, and forged by a third."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seedtune.engines.ray import status_file
from seedtune.errors import RunError

WORKER = {
    "name": "toy-0",
    "kind": "toy",
    "state": "idle",
    "host": "here",
    "pid": 7,
    "position": 3,
    "jobs": 2,
    "busy": 0.5,
    "at_it": None,
}
STATUS: dict[str, Any] = {
    "time": 1.0,
    "target": {"toy": 1},
    "min_workers": 1,
    "position": 3,
    "queued": 0,
    "open": 0,
    "lost": 0,
    "workers": [WORKER],
    "notes": ["began"],
}


def test_the_status_is_read_as_it_was_written_and_through_no_link(tmp_path):
    run, other = tmp_path / "run", tmp_path / "theirs"
    run.mkdir()
    other.write_text("kept")
    (run / status_file.STATUS).symlink_to(other)
    status_file.show(run, STATUS)
    found = status_file.status_of(run)
    assert {name: found[name] for name in ("time", "target", "notes")} == {
        name: STATUS[name] for name in ("time", "target", "notes")
    }
    assert found["workers"][0]["name"] == "toy-0"
    assert other.read_text() == "kept"


@pytest.mark.parametrize(
    "change",
    [
        {"time": "now"},
        {"target": {}},
        {"target": {"toy": "many"}},
        {"workers": [{"name": "x"}]},
        {"workers": [{**WORKER, "busy": "x"}]},
        {"notes": [1]},
        {"lost": None},
    ],
)
def test_a_status_of_another_form_is_one_line(change, tmp_path):
    (tmp_path / status_file.STATUS).write_text(json.dumps({**STATUS, **change}))
    with pytest.raises(RunError, match="is damaged"):
        status_file.status_of(tmp_path)


def test_a_run_without_workers_says_so(tmp_path):
    with pytest.raises(RunError, match="no Ray workers are at"):
        status_file.status_of(tmp_path)
