"""Folders of cached files, and how the Hugging Face hub is reached."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seedtune.cli.doctor.findings import Finding, size
from seedtune.numerics.machine import cache_folders

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
YES = ("1", "ON", "YES", "TRUE")
"""Values, in capitals, that Hugging Face's libraries take as true."""


def caches() -> Iterator[Finding]:
    """Yield the folder of seedtune's caches, which has to be writable, and the hub's, with their sizes."""
    folder = cache_folders.writable_folder()
    places = ", ".join(map(str, cache_folders.candidates()))
    if folder is None:
        fix = "set SEEDTUNE_CACHE to a folder that you can write"
        yield Finding("caches", "seedtune", f"no folder can be written: {places}", False, fix)
    else:
        yield Finding("caches", "seedtune", f"{folder}, writable, {size(bytes_in(folder))}", True)
    yield _hub_cache(hub_cache())


def _hub_cache(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("caches", "Hugging Face", f"{folder}, not there yet")
    writable = _can_write(folder)
    words = "writable" if writable else "not writable"
    fix = "" if writable else "set HF_HOME to a folder that you can write"
    return Finding("caches", "Hugging Face", f"{folder}, {words}, {size(bytes_in(folder))}", writable or None, fix)


def hub_cache() -> Path:
    """Return the folder in which Hugging Face's libraries keep models."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(chosen).expanduser()
    return _home() / "hub"


def _home() -> Path:
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{shared}/huggingface").expanduser()


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder, those reached by links left out."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def hub() -> Iterator[Finding]:
    """Yield whether there is a token for the hub (never the token), and whether libraries may ask the hub."""
    yield Finding("hub", "token", _token())
    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in YES]
    words = f"offline ({', '.join(f'{name}={os.environ[name]}' for name in offline)})" if offline else "allowed"
    yield Finding("hub", "downloads", words)
    if endpoint := os.environ.get("HF_ENDPOINT"):
        yield Finding("hub", "address", endpoint)


def _token() -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return f"set by {name}"
    file = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").expanduser()
    try:
        there = bool(file.read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        there = False
    return f"in {file}" if there else "none: public models and data only (hf auth login)"
