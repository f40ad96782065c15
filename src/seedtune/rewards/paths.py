"""Where the files of a user's code lie."""

from __future__ import annotations

import os
import sys


def place_settled(name: str) -> str:
    """A task's or environment's name, ``file.py:NAME`` with the file's absolute path."""
    place, colon, word = name.rpartition(":")
    return f"{os.path.abspath(os.path.expanduser(place))}:{word}" if colon and place.endswith(".py") else name


def reach(folder: str) -> None:
    """Let imports find what lies in a folder, after everything else."""
    if folder not in sys.path:
        sys.path.append(folder)
