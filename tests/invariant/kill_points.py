"""Kills toy runs at exact points: every call of every operation below, before, halfway or after it.

``python kill_points.py FOLDER`` runs a reference run, then, for each point, a run that is killed there and
resumed.  It prints one JSON line a point.  Processes are forked from this one, so that a run costs 0.1 s.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import runs
from seedtune.numerics.machine import disk
from seedtune.numerics.weights import Weights
from seedtune.run import directory, recorded_config
from seedtune.trainer import ESTrainer

SETTINGS: dict[str, Any] = {"generations": 3, "eval_prompts": 2, "prompts_per_generation": 2}
MOST = 200


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(real: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    die()


def after(real: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    real(*arguments, **keywords)
    die()


def half_of_the_line(real: Callable[..., Any], file: int, data: bytes, offset: int) -> None:
    real(file, data[: len(data) // 2], offset)
    die()


def half_of_the_rows(real: Callable[..., Any], path: Path, rows: Any) -> None:
    data = directory._lines(rows)
    with path.open("ab") as file:
        file.write(data[: len(data) // 2])
    die()


POINTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "in a ledger line": (os, "pwrite", half_of_the_line),
    "before a flush": (os, "fsync", before),
    "after a flush": (os, "fsync", after),
    "before an update": (Weights, "apply", before),
    "after an update": (Weights, "apply", after),
    "before the weights of a snapshot": (Weights, "save", before),
    "after the weights of a snapshot": (Weights, "save", after),
    "before the rename of a snapshot": (Path, "rename", before),
    "after the rename of a snapshot": (Path, "rename", after),
    "before a whole file": (disk, "put", before),
    "before the rename of a whole file": (Path, "replace", before),
    "after the rename of a whole file": (Path, "replace", after),
    "before metrics and samples": (directory, "append_lines", before),
    "in metrics and samples": (directory, "append_lines", half_of_the_rows),
    "after metrics and samples": (directory, "append_lines", after),
}
"""(whose, operation, what happens instead) by name."""


def arm(point: str, number: int) -> None:
    """Kill this process at the given call of the point's operation."""
    owner, name, kill = POINTS[point]
    real, calls = getattr(owner, name), iter(range(MOST))

    def patched(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == number:
            kill(real, *arguments, **keywords)
        return real(*arguments, **keywords)

    setattr(owner, name, patched)


def forked(work: Callable[[], Any]) -> int:
    """The exit code of ``work`` in a process of its own, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(forked_child(work), 0)[1])


def forked_child(work: Callable[[], Any]) -> int:
    """The process that does ``work``."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
        traceback.print_exc()
        os._exit(1)


def train(root: Path) -> None:
    ESTrainer(args=runs.toy(root, **SETTINGS)).train()


def go_on(root: Path) -> None:
    """What a user does: resume, or start again where there is nothing to resume."""
    if directory.RunPaths(root).config.exists():
        ESTrainer(args=recorded_config.run_config(root)).train(resume_from_checkpoint=True)
    else:
        train(root)


def kills(folder: Path, point: str) -> Iterator[dict[str, Any]]:
    """One result for each call of the point's operation in a whole run."""
    for number in range(MOST):
        root = folder / f"{point} {number}"

        def killed(root: Path = root, number: int = number) -> None:
            arm(point, number)
            train(root)

        code = forked(killed)
        if code == 0:
            return
        resumed = forked(lambda root=root: go_on(root))
        yield {"point": point, "root": str(root), "killed": code, "resumed": resumed}


def main(folder: Path) -> None:
    train(folder / "reference")
    for point in POINTS:
        for result in kills(folder, point):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
