"""Toy runs for tests: a configuration, the command line in a process of its own, and what a run left behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import seedtune
from seedtune.config.config import Config
from seedtune.run import directory, ledger, recorded_config, replay, sealing
from waiting import BOUND

SOURCE = Path(seedtune.__file__).parents[1]
TIMINGS = ("_time", "time/", "tokens_per_second", "products")


def toy(root: Path, **settings: Any) -> Config:
    """A toy run of a few generations that uses everything a run has."""
    small = {
        "generations": 5,
        "population": 4,
        "prompts_per_generation": 3,
        "sigma": 0.05,
        "alpha": 0.2,
        "fingerprint_steps": 2,
        "eval_steps": 2,
        "eval_prompts": 3,
        "save_steps": 2,
        "toy": {"size": 4},
        "reward_workers": 0,
    }
    return Config(engine="toy", task="toy", model="toy", output_dir=str(root), **{**small, **settings})


def write_config(config: Config, path: Path) -> Path:
    """A configuration as the file that ``seedtune train`` takes (JSON is YAML)."""
    path.write_text(config.model_dump_json(), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """Ours, with the package on the path and no terminal."""
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_WAIT_POLICY": "passive", **more}


def cli(
    *arguments: str | Path, code: str | None = None, before: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """``seedtune ARGUMENTS`` in a process of its own; ``code`` runs in it first, ``before`` before that."""
    return subprocess.run(
        command(*arguments, code=code),
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
        env=environment(**env),
        preexec_fn=before,
    )


def command(*arguments: str | Path, code: str | None = None) -> Sequence[str]:
    """The command line of ``seedtune ARGUMENTS``."""
    start = ["-m", "seedtune"] if code is None else ["-c", f"{code}\nfrom seedtune.cli import main\nmain()"]
    return [sys.executable, *start, *map(str, arguments)]


def lines_of(errors: str) -> list[str]:
    """What a command printed to stderr, but for signs of life on a slow machine."""
    return [line for line in errors.splitlines() if not line.startswith("  … ")]


def only_line(code: int, errors: str) -> str:
    """The one line that a command prints before it exits with 1, see `lines_of`."""
    assert code == 1, errors
    (line,) = lines_of(errors)
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def ledger_bytes(root: Path) -> bytes:
    """The ledger as it is on the disk."""
    return directory.RunPaths(root).ledger.read_bytes()


def without_ends(root: Path) -> list[dict[str, Any]]:
    """The lines of a ledger but for what ends of the run chose: a run that stopped and went on has more of these."""
    lines = rows(directory.RunPaths(root).ledger)
    kept = [line for line in lines if "chosen" not in line]
    return [{name: value for name, value in line.items() if name != "check"} for line in kept]


def edit_ledger(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the lines of a ledger and seal them again, as a skilled forger would."""
    path, check, sealed = directory.RunPaths(root).ledger, "", b""
    for data in rows(path):
        del data["check"]
        change(data)
        line, check = sealing.seal(data, check)
        sealed += line
    path.write_bytes(sealed)


def edit_generation(root: Path, generation: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change one generation's record and seal the ledger again."""
    edit_ledger(root, lambda data: change(data) if data.get("generation") == generation else None)


def flip_bit(value: float, bit: int) -> float:
    """A float with one of its 64 bits flipped."""
    (word,) = struct.unpack("<Q", struct.pack("<d", value))
    return struct.unpack("<d", struct.pack("<Q", word ^ 1 << bit))[0]


def fingerprint(root: Path) -> str:
    """The fingerprint of the weights that the run's ledger and snapshots give."""
    config = recorded_config.for_weights(recorded_config.run_config(root))
    engine, _ = replay.load(root, config, ledger.read(directory.RunPaths(root).ledger))
    return engine.fingerprint()


def rows(path: Path) -> list[dict[str, Any]]:
    """Every line of a JSON lines file; all must be whole."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A metrics line without what depends on the machine."""
    return {key: value for key, value in row.items() if not any(part in key for part in TIMINGS)}


def assert_same_run(root: Path, other: Path) -> None:
    """Both runs have the same ledger, weights and samples, and no missing or doubled metrics."""
    assert ledger_bytes(root) == ledger_bytes(other)
    assert fingerprint(root) == fingerprint(other)
    mine, theirs = directory.RunPaths(root), directory.RunPaths(other)
    assert mine.samples.read_bytes() == theirs.samples.read_bytes()
    pairs = list(zip(rows(mine.metrics), rows(theirs.metrics), strict=True))
    for one, two in pairs:
        known = untimed(one).keys() & untimed(two).keys() if "restored" in one else untimed(two).keys()
        assert {key: one[key] for key in known - {"alarms", "num_tokens"}} == {
            key: two[key] for key in known - {"alarms", "num_tokens"}
        }
    assert mine.report.is_file()
