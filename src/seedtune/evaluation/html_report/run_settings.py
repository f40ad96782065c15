"""Settings and versions of runs, as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.evaluation.html_report.markup import details, section, table
from seedtune.evaluation.html_report.run_data import RunData, defaults

LOCAL = ("output_dir",)
"""Settings that only say where the run is on its machine: left out of a page that travels."""

LONGEST, MOST = 300, 1000
"""Characters of a value that are shown, and settings."""


def settings(runs: Sequence[RunData]) -> str:
    """Render the settings that differ from the defaults, or between runs, then all of them, and the versions."""
    held = [{name: shown(value) for name, value in run.settings.items() if name not in LOCAL} for run in runs]
    usual = {name: shown(value) for name, value in defaults().items()}
    names = list(dict.fromkeys(name for values in held for name in values))[:MOST]
    several = len(runs) > 1
    differ = [name for name in names if _differs(name, held, usual)]
    caption = "Settings that differ between the runs" if several else "Settings other than the defaults"
    versions = [{name: shown(value) for name, value in run.versions.items()} for run in runs]
    recorded = list(dict.fromkeys(name for one in versions for name in one))[:MOST]
    return section(
        "settings",
        "Configuration and versions",
        _table(runs, differ, held, caption),
        details("All settings", _table(runs, names, held, "All settings")),
        _table(runs, recorded, versions, "Versions and fingerprints"),
    )


def _differs(name: str, held: Sequence[Mapping[str, str]], usual: Mapping[str, str]) -> bool:
    values = {values.get(name) for values in held}
    return len(values) > 1 if len(held) > 1 else values != {usual.get(name)}


def _table(runs: Sequence[RunData], names: Sequence[str], held: Sequence[Mapping[str, str]], caption: str) -> str:
    headings = ("name", *(run.name if len(runs) > 1 else "value" for run in runs))
    rows = ((name, *(values.get(name, "–") for values in held)) for name in names)
    return table(headings, rows, caption=caption, left=headings) if names else ""


def shown(value: Any) -> str:
    """Return a setting as text, absolute paths without their folders."""
    plain = _without_folders(value)
    return (plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str))[:LONGEST]


def _without_folders(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    local = isinstance(value, str) and re.match(r"[/~\\]|[A-Za-z]:[/\\]", value)
    return "…/" + re.split(r"[/\\]", value)[-1] if local else value
