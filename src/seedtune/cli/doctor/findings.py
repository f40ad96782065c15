"""One line of a diagnosis, and the boundary that turns a failing check into such a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from seedtune.errors import first_line


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about ``subject``; ``ok`` is None for plain information, ``fix`` is what to do if not ok."""

    section: str
    subject: str
    found: str
    ok: bool | None = None
    fix: str = ""


def guarded(section: str, checks: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return the checks of a section; one that raises becomes a check that says so, as nothing ends a diagnosis."""
    found: list[Finding] = []
    try:
        found.extend(checks())
    except Exception as error:  # noqa: BLE001 - the named boundary: broken packages raise anything
        words = f"could not be checked: {type(error).__name__}: {first_line(error)}"
        found.append(Finding(section, section, words, False, fix_of(error)))
    return found


def fix_of(error: Exception) -> str:
    """Return the command that installs a package again whose import failed, or an empty text."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return f"pip install --force-reinstall {module}" if module and module != "seedtune" else ""


def size(count: float) -> str:
    """Format bytes in GB, small ones in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
