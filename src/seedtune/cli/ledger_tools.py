"""Implementation of the commands that check, compare and ship finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from seedtune.cli.commands import check_dtype, say_exported
from seedtune.cli.console import console
from seedtune.cli.progress import ReplayProgress
from seedtune.engines.recorded_arithmetic import Entry, words
from seedtune.run.artifacts.consistency import Audit
from seedtune.run.artifacts.diff import Difference, diff_runs
from seedtune.run.artifacts.export import Rights
from seedtune.run.artifacts.pack import pack_run, unpack_run
from seedtune.run.artifacts.verify import Verification, verify_run


def say(line: str) -> None:
    """Print one line, without wrapping."""
    console().print(line, soft_wrap=True)


def count(number: int, what: str) -> str:
    """Format a count: ``1 generation``, ``2 generations``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def verify_command(run: Path, model: str | None, snapshots: bool, sets: Sequence[str]) -> None:
    """Verify a run and print what was checked; a failed verification is an error."""
    with ReplayProgress(console()) as progress:
        found = verify_run(run, model=model, sets=sets, snapshots=snapshots, progress=progress)
    for line in _verified(found):
        say(line)


def _verified(found: Verification) -> list[str]:
    last = max(found.matched, default=0)
    torn = f"; {found.torn} bytes of an unfinished last line are not part of the run" if found.torn else ""
    lines = [
        f"ledger: {count(found.generations, 'generation')}, every checksum good{torn}",
        *_audited(found.audit),
        f"base model: fingerprint {found.base_fingerprint}, as recorded",
        *_computed(found.arithmetics),
        f"replayed {count(found.generations, 'generation')} from the base model in {found.seconds:.2f} s",
    ]
    if found.snapshots:
        lines.append(f"snapshots: {', '.join(map(str, found.snapshots))} hold the replayed weights")
    if last < found.generations:
        lines.append(f"no fingerprint is recorded after generation {last}; replay ends with {found.fingerprint}")
    matched = len(found.matched)
    told = f"all {count(matched, 'recorded fingerprint')} match" if matched else "no fingerprint is recorded to compare"
    if found.generations == 0:
        told = "the base model is the recorded one, and there is no generation yet"
    return [*lines, f"verified: {told}"]


def _audited(audit: Audit) -> list[str]:
    told = (
        (audit.exact, "follow from the recorded rewards, bit for bit"),
        (audit.scaled, "follow from the recorded rewards up to one factor each (scores per prompt are not recorded)"),
        (audit.unchecked, "could not be checked against rewards (members tie and scores per prompt are not recorded)"),
    )
    return [f"coefficients: those of {count(number, 'generation')} {what}" for number, what in told if number]


def _computed(arithmetics: Mapping[int, Entry]) -> list[str]:
    """Describe how rewards were computed, and where that changed."""
    return [
        f"rewards{f' from generation {start} on' if start else ''}: computed with {words(entry)} (not measured again)"
        for start, entry in sorted(arithmetics.items())
    ]


def diff_command(run_a: Path, run_b: Path) -> None:
    """Print the first difference between two runs; exit code 1 if they differ."""
    found = diff_runs(run_a, run_b)
    for line in _compared(found, (run_a, run_b)):
        say(line)
    if not found.equal:
        raise typer.Exit(1)


def _compared(found: Difference, runs: tuple[Path, Path]) -> list[str]:
    lines = [f"start: {line}" for line in found.header] + [f"note: {line}" for line in found.notes]
    if found.generation is not None:
        where = f"generation {found.generation}, after {count(found.generation, 'equal one')}"
        return [*lines, f"the runs part at {where}:", *_indented(found.reasons)]
    lines.append(
        f"equal: {count(min(found.generations), 'generation')} and {count(found.fingerprints, 'recorded fingerprint')}"
    )
    if found.generations[0] != found.generations[1]:
        short, long = sorted(zip(found.generations, runs, strict=True))
        lines.append(f"{short[1]} ends there; {long[1]} goes on to generation {long[0]}")
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def pack_command(
    paths: tuple[Path, Path],
    generation: int | None,
    told: tuple[str | None, str | None, str | None],
    sets: Sequence[str],
) -> None:
    """Pack a run and print the result."""
    run, output = paths
    licence, base_licence, note = told
    rights = Rights(base_licence, licence, note)
    with ReplayProgress(console()) as progress:
        about = pack_run(run, output, generation=generation, rights=rights, sets=sets, progress=progress).about
    say(f"packed {count(about.generations, 'generation')} into {output}, {output.stat().st_size:,} bytes")
    say(f"base model {about.model}, fingerprint {about.base_fingerprint}")
    if about.base_licence is None:
        say("no licence of the base model was found: state it with --base-licence if you give the file away")
    say(f"rebuild it with: seedtune unpack BASE {output} -o MODEL")


def unpack_command(base: str, paths: tuple[Path, Path], dtype: str | None, sets: Sequence[str]) -> None:
    """Unpack a fine-tune and print how to load the model."""
    file, output = paths
    check_dtype(dtype)
    with ReplayProgress(console()) as progress:
        done = unpack_run(base, file, output, dtype=dtype, sets=sets, progress=progress)
    say_exported(done, output)
