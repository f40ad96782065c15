"""Kills toy runs at random instants until they have been killed so many times, and resumes them.

``python kill_instants.py FOLDER KILLS`` prints one JSON line for each process: the run's folder, the exit code, and
whether the ledger was a beginning of the reference's.  A kill soon after the start is of a new process, which may still
import; all others are forked from this one, so that they start in 0.1 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import runs
from invariant.kill_points import forked_child
from seedtune import cli
from seedtune.run import directory
from seedtune.trainer import ESTrainer
from waiting import wait_until

SETTINGS = {"generations": 60, "eval_steps": 3}


def size(root: Path) -> int:
    path = directory.RunPaths(root).ledger
    return path.stat().st_size if path.exists() else 0


def command(*arguments: str | Path) -> Callable[[], None]:
    """``seedtune ARGUMENTS`` for a forked process."""

    def call() -> None:
        sys.argv = ["seedtune", *map(str, arguments)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            cli.main()
        except SystemExit as ended:
            os._exit(ended.code or 0)

    return call


class Process:
    """A command in a process of its own, new or forked from this one."""

    def __init__(self, *arguments: str | Path, new: bool) -> None:
        self.code: int | None = None
        self.new = subprocess.Popen(
            runs.command(*arguments), env=runs.environment(), stdout=subprocess.DEVNULL
        ) if new else None  # fmt: skip
        self.pid = forked_child(command(*arguments)) if self.new is None else self.new.pid

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        if self.new is not None:
            return self.new.poll()
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def killed(self) -> int:
        """Kill it, unless it has ended; its exit code."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: self.poll() is not None)
        return self.poll()


def killed_somewhere(config: Path, root: Path, rng: np.random.Generator) -> int:
    """Train or resume in a process of its own until a random instant; its exit code."""
    begun = directory.RunPaths(root).config.exists()
    before, early = size(root), rng.random() < 0.2
    process = Process(*(("resume", root) if begun else ("train", config)), new=early)
    if not early:
        wait_until(lambda: size(root) > before, process=process)
    time.sleep(rng.uniform(0.0, 1.5 if early else 0.2))
    return process.killed()


def main(folder: Path, most: int) -> None:
    ESTrainer(args=runs.toy(folder / "reference", **SETTINGS)).train()
    whole = runs.ledger_bytes(folder / "reference")
    rng, kills, attempt = np.random.default_rng(20240917), 0, 0
    while kills < most:
        attempt += 1
        root, code = folder / f"killed{attempt}", None
        config = runs.toy(root, **SETTINGS, toy={"size": 4, "delay": 0.05})
        file = runs.write_config(config, folder / f"{attempt}.yaml")
        while code != 0 and kills < most:
            code = killed_somewhere(file, root, rng)
            kills += code != 0
            written = runs.ledger_bytes(root) if size(root) else b""
            same = whole.startswith(written[: written.rfind(b"\n") + 1])
            print(json.dumps({"root": str(root), "code": code, "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
