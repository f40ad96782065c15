"""The command ``seedtune doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Annotated

import typer

from seedtune import activities
from seedtune.cli.console import say, say_json
from seedtune.cli.doctor.findings import Finding, guarded
from seedtune.cli.options import AsJson
from seedtune.errors import ConfigError

MARKS = {True: "ok", False: "!!", None: "  "}
NEEDED = ("caches", "packages")
"""Sections in which everything has to be ok for a run."""


def sections() -> dict[str, Callable[[], Iterable[Finding]]]:
    """Return the checks by section, each imported where it may fail: a broken package costs its own section only."""

    def of(module: str, name: str) -> Callable[[], Iterable[Finding]]:
        def checks() -> Iterable[Finding]:
            from importlib import import_module

            found: Iterable[Finding] = getattr(import_module(f"seedtune.cli.doctor.{module}"), name)()
            return found

        return checks

    hardware = {name: of("hardware", name) for name in ("processor", "cores", "memory", "gpus", "python")}
    return {
        **hardware,
        "packages": of("installed_packages", "packages"),
        "engines": of("usable_engines", "engines"),
        "caches": of("hub_and_caches", "caches"),
        "hub": of("hub_and_caches", "hub"),
    }


def doctor(
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="The engine that has to work: transformers, vllm, ray or toy.")
    ] = "transformers",
    to_json: AsJson = False,
) -> None:
    """Say what this machine has, which engines work, and the command that installs what is missing.

    Nothing is written, and no model is loaded.  Engines are imported in processes of their own, so that a broken
    torch ends none of the other checks.

    Exit code 0: the engine works, seedtune's own packages fit, and its cache can be written.  1: not so; the last lines
    say what to do.
    """
    from seedtune.cli.doctor.usable_engines import PROBES

    if engine not in PROBES:
        raise ConfigError(f"--engine {engine!r} is not an engine. Give one of: {', '.join(PROBES)}.")
    with activities.doing("looking at this machine"):
        findings = [finding for name, checks in sections().items() for finding in guarded(name, checks)]
    faults = [finding for finding in findings if is_fault(finding, engine)]
    if to_json:
        say_json({"ok": not faults, "engine": engine, "findings": findings})
    else:
        _show(findings, faults, engine)
    if faults:
        raise typer.Exit(1)


def is_fault(finding: Finding, engine: str) -> bool:
    """Return whether a finding keeps runs with this engine from working: optional packages do not."""
    if finding.ok is not False:
        return False
    if finding.section == "engines":
        return finding.subject in (engine, "engines")
    if engine == "toy" and finding.subject in ("torch", "transformers", "tokenizers", "safetensors"):
        return False
    return finding.section in NEEDED and "(for the extra" not in finding.found


def _show(findings: Sequence[Finding], faults: Sequence[Finding], engine: str) -> None:
    """Print a line for each finding, then what to do."""
    for section, group in groupby(findings, key=lambda finding: finding.section):
        say(section)
        for finding in group:
            advice = f"  →  {finding.fix}" if finding.fix else ""
            say(f"  {MARKS[finding.ok]} {finding.subject:<20} {finding.found}{advice}")
    if not faults:
        say(f"engine={engine} works here. Begin with: seedtune init")
        return
    say(f"engine={engine} does not work here yet:")
    for fault in faults:
        say(f"  {fault.subject}: {fault.found}{f'. Run: {fault.fix}' if fault.fix else ''}")
