"""The user's mark: one key for all of a user's files, which disks of every kind keep, and what is said without one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from seedtune.numerics.machine import cache_folders
from seedtune.run import sealing
from seedtune.run.sealing import is_marked, marked

DATA = b"sigma: 0.1\n"


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "keys" / "runs"


def without_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("torn", [None, b"", b"x" * 31])
def test_a_user_has_one_key_whatever_the_disk_and_what_a_crash_left(
    has_links: bool, torn: bytes | None, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", without_links)
    if torn is not None:
        key.parent.mkdir(mode=0o700, parents=True)
        key.write_bytes(torn)
    text = marked(DATA)
    assert text.startswith(DATA + b"# written here: ")
    assert is_marked(text)
    assert marked(DATA) == text
    assert not is_marked(text.replace(b"0.1", b"0.2"))
    assert [path.name for path in key.parent.iterdir()] == ["runs"]
    assert key.stat().st_mode & 0o077 == 0


def test_a_key_that_another_process_made_meanwhile_is_the_one(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, link = b"k" * 32, os.link

    def late(new: str, file: Path) -> None:
        file.write_bytes(other)
        link(new, file)

    monkeypatch.setattr(os, "link", late)
    assert is_marked(marked(DATA))
    assert key.read_bytes() == other


def test_a_key_is_on_the_disk_before_it_has_its_name(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(sealing.disk, "flush", lambda file: flushed.append((os.fstat(file).st_size, key.exists())))
    marked(DATA)
    assert flushed == [(32, False)]


def test_without_a_folder_for_the_key_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_folders, "private_folder", lambda *_: None)
    assert marked(DATA) == DATA
    assert "this run is not marked as yours" in caplog.text
    assert "Set SEEDTUNE_CACHE" in caplog.text
