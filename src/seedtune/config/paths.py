"""Types of settings that are paths: ``~`` and ``$VAR`` expanded, absolute, so that any later command finds the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated

from pydantic import AfterValidator

BUILTIN_MODELS = {"smollm2-135m": "apache-2.0"}
"""Models that come in a Python package, and their licences; a folder of such a name is written ``./NAME``."""

_IMPOSSIBLE = re.compile(rb"\A\Z|\0|\xed[\xa0-\xbf]|[^/]{256}|.{4096}", re.DOTALL)
"""No path, or one with a NUL, half a character, or more bytes than Linux takes: libraries fail in many ways."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


_IN_FULL: ContextVar[bool] = ContextVar("paths in full", default=False)


@contextmanager
def in_full(only: bool = True) -> Iterator[None]:
    """Refuse ``~`` and ``$VAR`` if ``only``: the paths are of a file that the user of this machine did not write."""
    before = _IN_FULL.set(only)
    try:
        yield
    finally:
        _IN_FULL.reset(before)


def check_possible(text: str) -> None:
    """Raise ValueError for text that is no path of a file."""
    if _IMPOSSIBLE.search(text.encode(errors="surrogatepass")):
        raise ValueError("no file can have this path: give one in UTF-8, with names of 1 to 255 bytes")


def expanded(text: str) -> str:
    """Return a path with ``~`` and ``$VAR`` expanded.

    Raises ValueError for a variable or a user that does not exist, instead of naming a folder ``$VAR`` or ``~user``,
    for a path that no file can have, and within `in_full` for whatever would be expanded.
    """
    check_possible(text)
    unset = next((a or b for a, b in _VARIABLE.findall(text) if (a or b) not in os.environ), None)
    if unset is not None and not os.path.exists(text):
        raise ValueError(f"the variable {unset} is not set: set it, or write the path in full")
    path = os.path.expanduser(os.path.expandvars(text))
    if path != text and _IN_FULL.get():
        raise ValueError("~ and variables are expanded in your own files only: write the path in full")
    if path.startswith("~"):
        raise ValueError("the home of this user is unknown: write the path in full")
    return path


def absolute(text: str) -> str:
    """Return a path made absolute, with ``~`` and ``$VAR`` expanded.  Raises ValueError like `expanded`."""
    return os.path.abspath(expanded(text))


def data_path(text: str) -> str:
    """Return the absolute path of a file or folder that exists; a name, such as a Hugging Face id, unchanged.

    Text with ``~`` or a ``$VAR`` is always a path, so that no variable's value is sent to the hub as a name.
    """
    check_possible(text)
    if text.startswith("~") or _VARIABLE.search(text):
        return absolute(text)
    return os.path.abspath(text) if os.path.exists(text) else text


def model_path(text: str) -> str:
    """Return the absolute path of a model's folder; a name unchanged, even if there is another folder of that name."""
    is_model = text not in BUILTIN_MODELS and os.path.isfile(os.path.join(text, "config.json"))
    return data_path(text) if is_model or not os.path.exists(text) else text


def id_and_revision(name: str) -> tuple[str, dict[str, str]]:
    """Split a Hugging Face id ``org/name@revision`` (a branch, tag or commit) into the id and options for loading it.

    A name without a revision, and a folder that exists, have no options.
    """
    place, _, revision = name.partition("@")
    return (place, {"revision": revision}) if revision and not os.path.exists(name) else (name, {})


def is_folder(model: str) -> bool:
    """Whether a model's name is the path of a folder, as opposed to a Hugging Face id or a built-in name."""
    place = id_and_revision(model)[0]
    return model.startswith((".", "~", "/")) or place.count("/") > 1 or os.path.isdir(model)


def public_name(model: str) -> str:
    """Return a model's name for files that travel: of a folder only its own name, without its location."""
    return os.path.basename(os.path.realpath(os.path.expanduser(model))) if is_folder(model) else model


def file_and_name(text: str) -> str:
    """Make the file in ``file.py:NAME`` absolute; return other names (``module.NAME``) unchanged."""
    place, _, word = text.rpartition(":")
    return f"{absolute(place)}:{word}" if is_file(place) else text


def is_file(place: str) -> bool:
    """Whether the part of ``PLACE:NAME`` before the colon is a file, as opposed to a module."""
    return place.endswith(".py") or "/" in place


LocalPath = Annotated[str, AfterValidator(absolute)]
"""A local file or folder."""

DataPath = Annotated[str, AfterValidator(data_path)]
"""A local file or folder of data, or a Hugging Face id."""

ModelPath = Annotated[str, AfterValidator(model_path)]
"""A model's local folder, or a Hugging Face id or a built-in name."""

FileAndName = Annotated[str, AfterValidator(file_and_name)]
"""``file.py:NAME``, or a name without a file."""
