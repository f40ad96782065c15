"""What busy neighbours cost: generations alone, beside one busy process, and beside one on every core.

    python benchmarks/neighbours.py [--output benchmarks/results/neighbours.md]

32 members × 4 prompts (128 rows at once) and 2 × 4 (8 rows, short steps with many barriers), 24 new tokens.  Every
round measures all three cases in turn; medians are printed, and each as a share of the speed alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
from generation import _engine, run, table, versions

from peers import MODEL, job, members, prompts  # isort: skip

TOKENS = 24


@contextmanager
def busy(count: int) -> Iterator[None]:
    """While open, ``count`` other processes compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    engine, cores = _engine(MODEL), len(os.sched_getaffinity(0))
    jobs = {4 * count: job(members(count), prompts(4), TOKENS) for count in (32, 2)}
    cases = {"alone": 0, "beside one busy process": 1, "beside one on every core": cores}
    for task in jobs.values():
        run(engine, task)
    rates: dict[tuple[int, str], list[float]] = {}
    for _ in range(options.rounds):
        for name, others in cases.items():
            with busy(others):
                for rows, task in jobs.items():
                    seconds, _times = run(engine, task)
                    rates.setdefault((rows, name), []).append(rows * TOKENS / seconds)
    found: dict[str, float] = {}
    for rows in jobs:
        alone = statistics.median(rates[rows, "alone"])
        for name in cases:
            rate = statistics.median(rates[rows, name])
            found[f"{rows} rows, {name} (tokens/s)"] = rate
            if name != "alone":
                found[f"{rows} rows, {name}, share of the speed alone"] = rate / alone
    text = f"{engine._products()}.\n\n" + table(f"{cores} cores, {TOKENS} new tokens", found)
    print(text)
    if options.output:
        options.output.write_text(f"# What busy neighbours cost\n\n{versions()}.\n\n{text}")


if __name__ == "__main__":
    main()
