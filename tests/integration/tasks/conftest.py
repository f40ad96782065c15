"""A user's folder for runs of own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from own_data import REWARDS, rows


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a reward file and data, as a user has them."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    monkeypatch.chdir(tmp_path)
    return tmp_path
