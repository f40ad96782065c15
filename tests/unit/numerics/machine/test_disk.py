"""Whole files: several writers do not disturb each other, and killed ones leave nothing for long."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seedtune.numerics.machine import disk


def test_a_writer_that_begins_while_another_writes_disturbs_neither(tmp_path, monkeypatch):
    real = Path.replace

    def later(part: Path, path: Path) -> Path:
        monkeypatch.setattr(Path, "replace", real)
        disk.put(path, b"second")
        assert path.read_bytes() == b"second"
        return part.replace(path)

    monkeypatch.setattr(Path, "replace", later)
    disk.put(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    texts = [bytes([65 + number]) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: disk.put(tmp_path / "file", text), texts * 10))
    assert (tmp_path / "file").read_bytes() in texts
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("age", "kept"), [(0, True), (2 * disk.ABANDONED, False)])
def test_the_next_writer_removes_what_a_killed_one_left_but_not_what_another_writes(tmp_path, age, kept):
    part, other = tmp_path / ".[a].1234.part", tmp_path / ".b.1234.part"
    for file in (part, other):
        file.write_bytes(b"half")
        os.utime(file, (now := file.stat().st_mtime - age, now))
    disk.put(tmp_path / "[a]", b"whole")
    assert part.exists() == kept
    assert other.exists()


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch):
    disk.put(tmp_path / "file", b"old")

    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        disk.put(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
